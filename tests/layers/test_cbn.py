"""CrossIterBatchNorm2d against the paper's formulas, the recorded arrays and its own identities."""

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

from mmdet.layers import ConvModule, CrossIterBatchNorm2d
from mmdet.layers.batch_stats import Normalize, _backward_by_sums, batch_moments
from mmdet.layers.cbn import derivatives as cbn

from .reference import KINDS, PlainCBN


def make_conv(kind, c_in=4, c_out=8, bias=False):
    options = KINDS[kind]
    if options is None:
        return nn.Linear(c_in, c_out, bias=bias).double()
    return nn.Conv2d(c_in, c_out, bias=bias, **options).double()


def make_input(kind, step=0, scale=1.0):
    if KINDS[kind] is None:
        return torch.randn(11 + step % 3, 4, dtype=torch.float64) * scale
    return torch.randn(3, 4, 10 + step % 3, 9 + step % 2, dtype=torch.float64) * scale + 0.3


@pytest.mark.parametrize('path', ['autograd', 'closed form'])
@pytest.mark.parametrize('compensation', ['taylor', 'root'])
@pytest.mark.parametrize('rho', [1.0, 0.5, 0.0])
@pytest.mark.parametrize('kind', ['3x3', 'grouped', 'oblong', 'linear'])
def test_equals_the_formulas_over_twenty_iterations(path, compensation, rho, kind):
    torch.manual_seed(0)
    conv = make_conv(kind)
    norm = CrossIterBatchNorm2d(8, rho=rho, compensation=compensation).double()
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.uniform_(norm.bias)
    params = [conv.weight, norm.weight, norm.bias]
    plain, mine = PlainCBN(rho=rho, compensation=compensation), torch.optim.SGD(params, lr=0.05, momentum=0.9)
    for step in range(20):
        x = make_input(kind, step).requires_grad_()
        y = conv(x)
        target = torch.randn_like(y)
        want = plain(y, conv.weight, norm.weight, norm.bias)
        want_grads = torch.autograd.grad((want - target).square().mean(), [x, *params])
        got = norm(conv(x), conv.weight) if path == 'autograd' else norm.after(conv, x)
        got_grads = torch.autograd.grad((got - target).square().mean(), [x, *params])
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
        for got_grad, want_grad in zip(got_grads, want_grads):
            torch.testing.assert_close(got_grad, want_grad, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(norm.running_mean, plain.running_mean, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(norm.running_var, plain.running_var, rtol=1e-10, atol=1e-10)
        for param, grad in zip(params, got_grads[1:]):
            param.grad = grad
        mine.step()
    assert norm.history.filled == 3 and norm.num_batches_tracked == 20


@pytest.mark.parametrize('kind', KINDS)
def test_closed_forms_equal_autograd(kind):
    torch.manual_seed(1)
    conv, x = make_conv(kind), make_input(kind, 1)
    norm = CrossIterBatchNorm2d(8).double()
    closed, through_graph = copy.deepcopy(norm), norm
    through_graph(conv(x), conv.weight)
    closed.after(conv, x)
    one, other = closed.history, through_graph.history
    torch.testing.assert_close(one.dvar, other.dvar, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(one.dmean, other.dmean, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(one.values, other.values, rtol=1e-11, atol=1e-12)
    # Euler: degree 1 and 2 in the weight, so that the lines meet weight 0 at nothing and at minus the variance.
    mean, var, mean_0, var_0 = one.values[:, :, 0]
    torch.testing.assert_close(mean_0, torch.zeros_like(mean), rtol=0, atol=1e-12)
    torch.testing.assert_close(var_0, -var, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize('path', ['autograd', 'closed form'])
@pytest.mark.parametrize('kind', ['3x3', 'grouped', 'depthwise', 'linear'])
def test_between_iterations_a_past_batch_holds_one_weight_and_little_more(kind, path):
    torch.manual_seed(0)
    conv, norm = make_conv(kind), CrossIterBatchNorm2d(8).double()
    for step in range(4):
        x = make_input(kind, step)
        norm(conv(x), conv.weight) if path == 'autograd' else norm.after(conv, x)
    held = sum(t.numel() for t in vars(norm.history).values() if torch.is_tensor(t))
    groups = getattr(conv, 'groups', 1)
    assert held == 3 * (conv.weight.numel() * (1 + groups / 8) + 4 * 8)


def test_channels_with_derivatives_of_their_own_keep_them():
    rows, dvar = torch.randn(2, 5, dtype=torch.float64), torch.randn(8, 5, dtype=torch.float64)
    shared = torch.stack([dvar, rows.repeat_interleave(4, 0)], 1)
    grouped = cbn.once_per_group(shared)
    assert torch.equal(grouped[:, -1], rows) and torch.equal(grouped[:, :-1].flatten(0, 1), dvar)
    assert torch.equal(cbn.once_per_group(shared * (1 + 1e-15)), grouped * (1 + 1e-15))
    for odd in (0, 3, 6, 7):
        own = shared.clone()
        own[odd, 1] += 1e-6
        assert torch.equal(cbn.once_per_group(own), own)
    assert cbn.once_per_group(torch.zeros(8, 2, 5)).shape == (1, 9, 5)


def test_buffer_0_is_batch_norm():
    torch.manual_seed(0)
    block = ConvModule(3, 8, 3, padding=1, norm_cfg=dict(type='CBN', buffer_num=0)).double()
    plain = copy.deepcopy(block)
    plain.bn = nn.BatchNorm2d(8).double()
    for _ in range(3):
        x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
        out, want = block(x), plain(x)
        torch.testing.assert_close(out, want, rtol=1e-12, atol=1e-12)
        out.square().sum().backward()
        want.square().sum().backward()
    for a, b in zip(block.parameters(), plain.parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-10)
    assert block.state_dict().keys() == plain.state_dict().keys()


# -- the recorded arrays ------------------------------------------------------------------------------

RECORDED = {
    'cbn_layer_burnin0_twostage_rho1_f64': False,
    'cbn_layer_burnin0_twostage_rho0_f64': False,
    'cbn_layer_burnin4_twostage_rho1_f64': False,
    'cbn_layer_extra_outp_f64': True,  # eps inside the root: outputs and gradients must agree too
}


@pytest.mark.parametrize('path', ['autograd', 'closed form'])
@pytest.mark.parametrize('name', RECORDED)
def test_recorded_arrays_of_the_reference_layer(recorded, name, path):
    data = np.load(recorded / f'{name}.npz')
    meta = json.loads(str(data['meta_json']))
    tensor = lambda key: torch.from_numpy(data[key])  # noqa: E731
    close = lambda a, key: torch.testing.assert_close(a, tensor(key), rtol=1e-10, atol=1e-10)  # noqa: E731
    convs, norms = [], []
    for _, c_in, c_out, k, stride, padding in meta['spec']:
        convs.append(nn.Conv2d(c_in, c_out, k, stride, padding, bias=False).double())
        norm = CrossIterBatchNorm2d(
            c_out, eps=meta['eps'], buffer_num=meta['buffer_num'], rho=meta['rho'], burnin_iters=meta['burnin']
        )
        norms.append(norm.double())
    compared = 0
    for it in (f'it{t:02}' for t in range(meta['iters'])):
        # Weights are set as recorded; the state under test is the layer's own.
        with torch.no_grad():
            for i, (conv, norm) in enumerate(zip(convs, norms)):
                conv.weight.copy_(tensor(f'{it}.l{i}.conv_weight_before'))
                norm.weight.copy_(tensor(f'{it}.l{i}.gamma_before'))
                norm.bias.copy_(tensor(f'{it}.l{i}.beta_before'))
        x = tensor(f'{it}.input').requires_grad_()
        out, same_eps = x, RECORDED[name]
        for i, (conv, norm) in enumerate(zip(convs, norms)):
            # Where eps differs, what reaches the next layer does: feed each layer what the recorded one got.
            if i and not same_eps:
                out = tensor(f'{it}.l{i - 1}.cbn_out').relu().requires_grad_()
            past = norm.history
            if past is not None and past.filled:
                weight = conv.weight.detach().flatten(1)
                newest_first = [(past.slot - 1 - j) % norm.buffer_num for j in range(past.filled)]
                found = past.estimate(weight, norm.rho, norm.compensation)
                means, variances = (value[:, newest_first].T for value in found)
                torch.testing.assert_close(means, tensor(f'{it}.l{i}.mu_all')[1:], rtol=1e-10, atol=1e-10)
                recorded_var = tensor(f'{it}.l{i}.meanx2_all')[1:] - means.square()
                torch.testing.assert_close(variances, recorded_var, rtol=1e-10, atol=1e-10)
                compared += 1
            y = conv(out)
            burning_in = norm.burning_in
            out = norm(y, conv.weight) if path == 'autograd' else norm(y, conv=conv, x=out)
            if burning_in:
                assert norm.history is None
            else:
                mean, pooled = norm._last[0].batch.mean, norm._last[0]
                pooled_var = pooled.var
                close(mean, f'{it}.l{i}.cur_mu')
                close(pooled.mean, f'{it}.l{i}.mu')
                close(pooled_var, f'{it}.l{i}.sigma2')
                slot = (norm.history.slot - 1) % norm.buffer_num
                if meta['rho']:  # where nothing is compensated there are no derivatives
                    dmean = norm.history.dmean[:, slot].expand(len(mean), -1).view_as(conv.weight)
                    close(dmean, f'{it}.l{i}.dmudw')
                    dnu = norm.history.dvar[:, slot].view_as(conv.weight) + 2 * mean.view(-1, 1, 1, 1) * dmean
                    close(dnu, f'{it}.l{i}.dmeanx2dw')
            close(norm.running_mean, f'{it}.l{i}.running_mean')
            close(norm.running_var, f'{it}.l{i}.running_var')
            if same_eps:
                close(out, f'{it}.l{i}.cbn_out')
            elif not burning_in:
                # (y - m) / (sqrt(v) + eps) against (y - m) / sqrt(v + eps)
                gamma, beta = (p.detach().view(1, -1, 1, 1) for p in (norm.weight, norm.bias))
                ratio = (pooled_var + norm.eps).sqrt() / (pooled_var.sqrt() + norm.eps)
                close((out.detach() - beta) * ratio.view(1, -1, 1, 1) + beta, f'{it}.l{i}.cbn_out')
            out = out.relu() if i < 2 else out
        if same_eps:
            (out - tensor(f'{it}.target')).square().mean().backward()
            close(x.grad, f'{it}.grad_input')
            for i, (conv, norm) in enumerate(zip(convs, norms)):
                close(conv.weight.grad, f'{it}.l{i}.grad_conv_weight')
                close(norm.weight.grad, f'{it}.l{i}.grad_gamma')
                close(norm.bias.grad, f'{it}.l{i}.grad_beta')
                conv.zero_grad(), norm.zero_grad()
    assert compared == 3 * (meta['iters'] - meta['burnin'] - 1)


# -- gradients and identities -------------------------------------------------------------------------


@pytest.mark.parametrize('affine', [True, False])
@pytest.mark.parametrize('kind', ['3x3', 'strided', 'grouped', 'linear'])
def test_gradcheck_with_frozen_history(kind, affine):
    torch.manual_seed(0)
    conv = make_conv(kind, 4, 4)
    norm = CrossIterBatchNorm2d(4, affine=affine).double()
    for step in range(3):
        norm.after(conv, make_input(kind, step))
        with torch.no_grad():
            conv.weight.add_(torch.randn_like(conv.weight) * 0.1)

    def fast(x, weight, *affine):
        # y follows ``weight``; the past is compensated for ``conv.weight``, which stands still.
        y = nn.functional.linear(x, weight) if kind == 'linear' else conv._conv_forward(x, weight, None)
        parameters = dict(zip(('weight', 'bias'), affine))
        return torch.func.functional_call(copy.deepcopy(norm), parameters, (y,), dict(conv=conv, x=x))

    x = make_input(kind, 1)
    inputs = [x if kind == 'linear' else x[:2, :, :6, :5].contiguous(), conv.weight.detach().clone()]
    inputs += [torch.rand(4).double() + 0.5, torch.randn(4).double()] if affine else []
    assert torch.autograd.gradcheck(fast, [t.requires_grad_() for t in inputs])


@pytest.mark.parametrize('path', ['autograd', 'closed form'])
def test_constant_weights_are_batch_norm_of_the_concatenated_batch(path):
    torch.manual_seed(0)
    conv = make_conv('3x3')
    norm = CrossIterBatchNorm2d(8, buffer_num=3).double()
    batches = [torch.randn(2, 4, 9, 9, dtype=torch.float64) * (1 + i) for i in range(6)]
    for batch in batches:
        out = norm(conv(batch), conv.weight) if path == 'autograd' else norm.after(conv, batch)
    together = nn.BatchNorm2d(8).double()(conv(torch.cat(batches[-4:])))
    torch.testing.assert_close(out, together[-2:], rtol=1e-12, atol=1e-12)


def test_compensated_mean_is_exact_however_far_the_weight_moves():
    torch.manual_seed(0)
    conv, norm = make_conv('strided'), CrossIterBatchNorm2d(8).double()
    batches = [make_input('strided', i) for i in range(3)]
    for batch in batches:
        norm.after(conv, batch)
        with torch.no_grad():
            conv.weight.copy_(torch.randn_like(conv.weight) * 5)
    means, _ = norm.history.estimate(conv.weight.detach().flatten(1), 1.0, 'taylor')
    for mean, batch in zip(means.T, batches):
        torch.testing.assert_close(mean, conv(batch).mean((0, 2, 3)), rtol=1e-12, atol=1e-12)


def test_root_form_is_closer_than_taylor_and_both_than_naive():
    torch.manual_seed(0)
    errors = {}
    x = torch.randn(4, 4, 16, 16, dtype=torch.float64)
    for name, options in dict(naive=dict(rho=0.0), taylor={}, root=dict(compensation='root')).items():
        torch.manual_seed(1)
        conv, norm = make_conv('3x3'), CrossIterBatchNorm2d(8, **options).double()
        norm.after(conv, x)
        with torch.no_grad():
            conv.weight.add_(torch.randn_like(conv.weight) * 0.004)
        _, var = norm.history.estimate(conv.weight.detach().flatten(1), norm.rho, norm.compensation)
        true = conv(x).var((0, 2, 3), correction=0)
        errors[name] = ((var[:, 0] - true).abs() / true).mean().item()
    assert errors['root'] < errors['taylor'] < errors['naive'] / 2, errors


def test_negative_second_order_estimate_is_clamped():
    # The weight shrinks to a tenth: to first order the variance would fall below nothing.
    torch.manual_seed(0)
    conv, norm = make_conv('3x3'), CrossIterBatchNorm2d(8).double()
    norm.after(conv, make_input('3x3'))
    with torch.no_grad():
        conv.weight.mul_(0.1)
    _, var = norm.history.estimate(conv.weight.detach().flatten(1), 1.0, 'taylor')
    assert (var == 0).all()
    assert norm.after(conv, make_input('3x3', 1)).isfinite().all()


@pytest.mark.parametrize('factor', [2, 4, 16])
@pytest.mark.parametrize('kind', KINDS)
def test_grids_together_are_the_whole_derivative(kind, factor):
    """Every position lies on exactly one grid, so their sums add up to the sum over all positions."""
    torch.manual_seed(0)
    conv = make_conv(kind)
    x = torch.randn(70, 4, dtype=torch.float64) if kind == 'linear' else make_input(kind, 2)
    y = conv(x).detach()
    batch = batch_moments(y)
    x, y, geometry = cbn.as_map(x), cbn.as_map(y), cbn.Geometry.of(conv)
    grids = [cbn.subsampling_grid(len(y), *y.shape[2:], factor, i) for i in range(factor)]
    all_positions = cbn.Grid((1, 1, 1), (0, 0, 0))
    whole = cbn.in_closed_form(x, y, batch, geometry, all_positions) * y[:, 0].numel()
    grids = set(grids)  # where a map is smaller than the grid's steps some grids coincide
    counts = [cbn.subsample(x, y, geometry, grid)[1][:, 0].numel() for grid in grids]
    parts = [cbn.in_closed_form(x, y, batch, geometry, grid) * n for grid, n in zip(grids, counts)]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-9, atol=1e-9)
    assert sum(counts) == y[:, 0].numel()


def test_subsampling_over_rois_and_over_positions():
    x = torch.randn(128, 4, 7, 7)
    y = torch.randn(128, 8, 7, 7)
    geometry = cbn.Geometry([3, 3], [1, 1], [1, 1], [1, 1], 1)
    some_x, some_y, same = cbn.subsample(x, y, geometry, cbn.subsampling_grid(128, 7, 7, 8, 3))
    assert len(some_x) == len(some_y) == 16 and same == geometry and torch.equal(some_y, y[3::8])
    # 16 RoIs remain, half of whose columns are left out
    some_x, some_y, other = cbn.subsample(x, y, geometry, cbn.subsampling_grid(128, 7, 7, 16, 3))
    assert len(some_x) == 16 and torch.equal(some_y, y[3::8, :, :, ::2]) and other.stride == [1, 2]
    _, some_y, other = cbn.subsample(x[:2], y[:2], geometry, cbn.subsampling_grid(2, 7, 7, 16, 3))
    assert some_y.shape == (2, 8, 1, 2) and other.stride == [4, 4]


@pytest.mark.parametrize('fraction', [1.0, 1 / 4, 1 / 16])
def test_derivative_fraction_changes_only_the_derivatives(fraction):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, 3, padding=1, bias=False)
    exact, sampled = CrossIterBatchNorm2d(8), CrossIterBatchNorm2d(8, derivative_fraction=fraction)
    x = torch.randn(2, 4, 64, 64)
    for _ in range(4):
        want, got = exact.after(conv, x), sampled.after(conv, x)
        with torch.no_grad():
            conv.weight.add_(torch.randn_like(conv.weight) * 0.01)
    torch.testing.assert_close(got, want, rtol=0.02, atol=0.02)
    a, b = (norm.history.dvar.flatten() for norm in (exact, sampled))
    assert torch.cosine_similarity(a, b, dim=0) > 0.9
    # Where the weight has not moved since, the estimate is the measured variance whatever the grid.
    fresh = CrossIterBatchNorm2d(8, derivative_fraction=fraction)
    fresh.after(conv, x)
    _, var = fresh.history.estimate(conv.weight.detach().flatten(1), 1.0, 'taylor')
    torch.testing.assert_close(var[:, 0], conv(x).var((0, 2, 3), correction=0))


def test_bias_of_the_convolution_is_left_out_of_the_history():
    torch.manual_seed(0)
    with_bias = make_conv('3x3', bias=True)
    without = copy.deepcopy(with_bias)
    without.bias = None
    one, other = CrossIterBatchNorm2d(8).double(), CrossIterBatchNorm2d(8).double()
    for step in range(4):
        x = make_input('3x3', step)
        torch.testing.assert_close(one.after(with_bias, x), other.after(without, x), rtol=1e-12, atol=1e-12)
        with torch.no_grad():
            with_bias.bias.add_(1.0)


@pytest.mark.parametrize(
    'options, word',
    [
        (dict(buffer_num=-1), 'buffer_num'),
        (dict(buffer_num=1.5), 'buffer_num'),
        (dict(compensation='euler'), 'taylor'),
        (dict(derivative_fraction=0), 'derivative_fraction'),
        (dict(burnin=-1), 'burnin'),
        (dict(burnin_iters=-1), 'burnin_iters'),
        (dict(burnin='8'), "burnin='8' must be a number"),
        (dict(rho=float('nan')), 'rho=nan must be a finite number'),
        (dict(derivative_fraction='1/4'), "derivative_fraction='1/4' must be .* as 0.25"),
        (dict(full_gradient='no'), "full_gradient='no' must be True or False"),
        (dict(sync='no'), "sync='no' must be True or False"),
    ],
)
def test_wrong_options_are_named(options, word):
    with pytest.raises(ValueError, match=word):
        CrossIterBatchNorm2d(8, **options)


def test_wrong_inputs_are_named():
    conv, norm = nn.Conv2d(3, 8, 3, bias=False), CrossIterBatchNorm2d(8)
    y = conv(torch.randn(2, 3, 8, 8))
    with pytest.raises(ValueError, match='norm.after'):
        norm(y)
    with pytest.raises(ValueError, match='channels'):
        norm(y[:, :4], conv.weight)
    with pytest.raises(ValueError, match='does not depend'):
        norm(y.detach(), conv.weight)
    with pytest.raises(ValueError, match='no derivative'):
        norm(y, nn.Conv2d(3, 8, 3).weight)
    with pytest.raises(ValueError, match='one value per channel .* has no variance to train on: larger images'):
        norm.after(conv, torch.randn(1, 3, 3, 3))
    assert norm.history is None


def test_cuda_backward_with_its_primitives_written_out(monkeypatch):
    """The CUDA branch is the same formula; its two kernels stand here as what PyTorch documents of them."""

    def reduce(grad, y, mean, rstd, weight, *wanted):
        assert all(wanted)
        centred = y - mean.view(1, -1, 1, 1)
        sum_g, sum_gd = grad.sum((0, 2, 3)), (grad * centred).sum((0, 2, 3))
        return sum_g, sum_gd, sum_gd * rstd, sum_g

    def elementwise(grad, y, mean, rstd, weight, sum_g, sum_gd, counts):
        assert counts.dtype == torch.int32
        wide = [t.view(1, -1, 1, 1) for t in (mean, rstd, weight, sum_g, sum_gd)]
        m, r, w, g, gd = wide
        total = counts.sum()
        return (grad - g / total - (y - m) * r.square() * gd / total) * r * w

    monkeypatch.setattr(torch, 'batch_norm_backward_reduce', reduce)
    monkeypatch.setattr(torch, 'batch_norm_backward_elemt', elementwise)
    torch.manual_seed(0)
    y = torch.randn(2, 8, 5, 6, dtype=torch.float64, requires_grad=True)
    mean, var, gamma, beta = (torch.rand(8, dtype=torch.float64) + 0.5 for _ in range(4))
    gamma.requires_grad_(), beta.requires_grad_()
    out = Normalize.apply(y, mean, var, gamma, beta, 1e-5, 4, 60, None)
    grad = torch.randn_like(out)
    want = torch.autograd.grad(out, (y, gamma, beta), grad)
    rstd = (var + 1e-5).rsqrt()
    for count in (240, torch.tensor(240.0)):
        got = _backward_by_sums(grad, y.detach(), mean, rstd, gamma.detach(), count, None, [True] * 3, True)
        for a, b in zip(got, want):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
