"""BatchNorm's kernels for channels-last maps on the CPU against float64 formulas, and the layers that call them."""

import pytest
import torch
from torch import nn
from torch.library import opcheck

from mmdet.layers import batch_stats, build_norm_layer
from mmdet.layers.batch_stats import Normalize, batch_moments
from mmdet.layers.cbn.derivatives import Geometry, from_patches, in_closed_form, subsampling_grid
from mmdet.ops import COMPILED

pytestmark = pytest.mark.skipif(not COMPILED, reason='the compiled ops are missing')

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
# one row; one channel; 65 channels; 1,025 rows; one row and column of several maps
SHAPES = [(1, 64), (1, 3), (9, 1), (7, 65), (1025, 33), (1025, 64), (2, 65, 5, 7), (1, 128, 40, 30), (3, 8, 1, 4)]


def maps(shape, dtype=torch.float32, seed=0):
    """Values whose mean is three deviations, channels-last."""
    generator = torch.Generator().manual_seed(seed)
    y = (torch.randn(shape, generator=generator, dtype=torch.float64) + 3).to(dtype)
    return y.contiguous(memory_format=torch.channels_last) if y.dim() == 4 else y


def rows(y):
    return y.movedim(1, -1).reshape(-1, y.shape[1]).double()


def tolerance(dtype):
    return dict(rtol=1e-12, atol=1e-11) if dtype == torch.float64 else dict(rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('dtype', DTYPES)
def test_kernels_are_the_formulas(shape, dtype):
    y, grad = maps(shape, dtype), maps(shape, dtype, seed=1)
    wide = torch.promote_types(dtype, torch.float32)
    mean, var = torch.ops.mmdet.batch_moments(y)
    assert mean.dtype == var.dtype == wide
    want_var, want_mean = torch.var_mean(rows(y), 0, correction=0)
    torch.testing.assert_close(mean.double(), want_mean, **tolerance(dtype))
    torch.testing.assert_close(var.double(), want_var, **tolerance(dtype))

    sum_g, sum_gd = torch.ops.mmdet.batch_norm_sums(grad, y, mean)
    centred = rows(y) - mean.double()
    size = (rows(grad) * centred).abs().sum(0)  # terms cancel
    torch.testing.assert_close(sum_g.double(), rows(grad).sum(0), **tolerance(dtype))
    assert ((sum_gd.double() - (rows(grad) * centred).sum(0)).abs() <= 1e-6 * size + 1e-9).all()

    scale, shift, slope = torch.rand(3, len(mean), dtype=wide)
    out = torch.ops.mmdet.batch_norm_input_grad(grad, y, mean, scale, shift, slope)
    want = scale.double() * (rows(grad) - shift.double() - centred * slope.double())
    assert out.dtype == dtype and out.stride() == y.stride()
    torch.testing.assert_close(rows(out), rows(want.to(dtype).double()), rtol=8e-3 if dtype == torch.bfloat16 else 1e-6,
                               atol=1e-5)  # fmt: skip


def test_variance_beside_a_large_mean():
    y = maps((4, 64, 50, 60)) + 100
    _, var = torch.ops.mmdet.batch_moments(y)
    torch.testing.assert_close(var.double(), rows(y).var(0, correction=0), rtol=2e-7, atol=0)


@pytest.mark.parametrize('dtype', DTYPES)
def test_non_finite_values_stay_in_their_channel(dtype):
    y = maps((2, 5, 6, 6), dtype)
    y[0, 1, 2, 3], y[1, 3, 0, 0] = float('nan'), float('inf')
    mean, var = torch.ops.mmdet.batch_moments(y)
    assert mean.isfinite().tolist() == [True, False, True, False, True] and mean[1].isnan()
    assert var.isfinite().tolist() == [True, False, True, False, True]
    sum_g, sum_gd = torch.ops.mmdet.batch_norm_sums(y, torch.ones_like(y), mean)
    assert sum_g.isfinite().tolist() == [True, False, True, False, True] and sum_gd[1].isnan()
    one = torch.ones_like(mean)
    out = torch.ops.mmdet.batch_norm_input_grad(y, torch.ones_like(y), one, one, 0 * one, 0 * one)
    assert torch.equal(out.isnan(), y.isnan()) and torch.equal(out[~y.isnan()], y[~y.isnan()])


@pytest.mark.parametrize('dtype', DTYPES)
def test_any_number_of_threads_gives_the_same_bits(dtype):
    y, grad = maps((3, 65, 41, 37), dtype), maps((3, 65, 41, 37), dtype, seed=1)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            mean, var = torch.ops.mmdet.batch_moments(y)
            sums = torch.ops.mmdet.batch_norm_sums(grad, y, mean)
            found.append([mean, var, *sums, torch.ops.mmdet.batch_norm_input_grad(grad, y, mean, var, *sums)])
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other))


@pytest.mark.parametrize('dtype', DTYPES)
def test_opcheck(dtype):
    y, grad = maps((2, 5, 4, 3), dtype), maps((2, 5, 4, 3), dtype, seed=1)
    values = torch.rand(4, 5, dtype=torch.promote_types(dtype, torch.float32)).unbind()
    opcheck(torch.ops.mmdet.batch_moments.default, (y,))
    opcheck(torch.ops.mmdet.batch_norm_sums.default, (grad, y, values[0]))
    opcheck(torch.ops.mmdet.batch_norm_input_grad.default, (grad, y, *values))


def test_bad_input_raises():
    ops, y = torch.ops.mmdet, maps((2, 4, 3, 3))
    mean = torch.zeros(4)
    for bad in (y.contiguous(), y[:, :, ::2], torch.zeros(2, 4, 3), y.half(), y[:0]):
        with pytest.raises(ValueError):
            ops.batch_moments(bad)
    for grad in (y.contiguous(), y.double(), y[:1], maps((2, 3, 3, 3))):
        with pytest.raises(ValueError):
            ops.batch_norm_sums(grad, y, mean)
        with pytest.raises(ValueError):
            ops.batch_norm_input_grad(grad, y, *[mean] * 4)
    for bad in (torch.zeros(3), mean.double(), torch.zeros(4, 2)[:, 0]):
        with pytest.raises(ValueError):
            ops.batch_norm_sums(y, y, bad)
        with pytest.raises(ValueError):
            ops.batch_norm_input_grad(y, y, mean, mean, mean, bad)


# -- the layers ---------------------------------------------------------------------------------------


class BatchNorm(nn.Module):
    """Normalize behind batch_moments, whose gradient reaches y through both."""

    def forward(self, y, weight, bias):
        batch = batch_moments(y.detach())
        return Normalize.apply(y, batch.mean, batch.var, weight, bias, 1e-5, 1, batch.count, None)


def test_gradcheck():
    y = maps((2, 3, 4, 5), torch.float64).requires_grad_()
    weight, bias = torch.rand(2, 3, dtype=torch.float64).unbind()
    assert batch_stats.compiled_for(y)
    leaves = y, weight.clone().requires_grad_(), bias.clone().requires_grad_()
    assert torch.autograd.gradcheck(BatchNorm(), leaves, fast_mode=False)


LAYERS = [dict(type='BN'), dict(type='BN', momentum=None), dict(type='BN', affine=False),
          dict(type='BN', track_running_stats=False), dict(type='SyncBN'), dict(type='BatchRenorm', warmup_iters=1),
          dict(type='CBN'), dict(type='CBN', derivative_fraction=1 / 4, full_gradient=True)]  # fmt: skip


def trained(cfg, layout, dtype, rounded=None):
    """Three steps: outputs, gradients and running statistics of a norm on maps in this layout, of `rounded` values."""
    compute = torch.promote_types(dtype, torch.float32)
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(6, 65, 3, padding=1).to(compute), build_norm_layer(cfg, 65)[1].to(compute)
    found = []
    for x in (torch.randn(3, 2, 6, 16, 18) * 3 + 5).to(compute):
        y, g = (t.to(rounded or dtype).to(dtype) for t in (conv(x).detach(), torch.randn(2, 65, 16, 18)))
        y = y.to(memory_format=layout).requires_grad_()
        assert batch_stats.compiled_for(y) == (layout is torch.channels_last)
        out = norm(y, conv=conv, x=x.to(memory_format=layout)) if cfg['type'] == 'CBN' else norm(y)
        assert out.dtype == dtype and out.is_contiguous(memory_format=layout)
        learned = [y, *norm.parameters(), *([conv.weight] if cfg.get('full_gradient') else [])]
        found += [out, *torch.autograd.grad(out, learned, g, allow_unused=True)]
        with torch.no_grad():
            conv.weight.mul_(1.05)
    return [t.detach().double() for t in (*found, *norm.buffers()) if t is not None]


@pytest.mark.parametrize('cfg', LAYERS, ids=str)
def test_layers_are_as_exact_as_on_planar_maps(cfg):
    for dtype, bound in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
        layouts = torch.contiguous_format, torch.channels_last
        for one, other in zip(*(trained(cfg, layout, dtype) for layout in layouts)):
            assert (one - other).abs().max() <= bound * max(1, one.abs().max())


@pytest.mark.parametrize('cfg', LAYERS, ids=str)
def test_layers_in_half_precision(cfg):
    exact = trained(cfg, torch.contiguous_format, torch.float32, rounded=torch.bfloat16)
    half = trained(cfg, torch.channels_last, torch.bfloat16)
    for one, other in zip(exact, half):  # outputs and the gradient of y are rounded, nothing else
        assert (one - other).norm() <= 2**-8 * one.norm()


def test_batch_norm_is_torchs_where_the_kernels_do_not_serve():
    x = torch.randn(3, 8, 5, 6)
    for cfg in (dict(), dict(momentum=None), dict(affine=False), dict(track_running_stats=False)):
        ours, plain = build_norm_layer(dict(type='BN', **cfg), 8)[1], nn.BatchNorm2d(8, **cfg)
        assert torch.equal(ours(x), plain(x)) and repr(ours) == repr(plain)
        assert ours.state_dict().keys() == plain.state_dict().keys()
        assert all(torch.equal(one, two) for one, two in zip(ours.buffers(), plain.buffers()))
        last = x.to(memory_format=torch.channels_last)
        torch.testing.assert_close(ours(last), plain(last), rtol=0, atol=1e-5)
        plain.load_state_dict(ours.state_dict())
        assert torch.equal(ours.eval()(last), plain.eval()(last))
    for bad in (x[0], torch.randn(2, 7, 3, 3), torch.randn(1, 8, 1, 1)):
        for layout in (torch.contiguous_format, torch.channels_last):
            with pytest.raises((ValueError, RuntimeError)):
                ours.train()(bad.to(memory_format=layout) if bad.dim() == 4 else bad)


def test_a_frozen_input_and_expanded_gradients():
    """The gradient of a mean has strides 0; gamma and beta alone may learn."""
    norm, plain = build_norm_layer(dict(type='BN'), 8)[1], nn.BatchNorm2d(8)
    x = maps((2, 8, 5, 6))
    norm(x).sum().backward()
    plain(x.contiguous()).sum().backward()
    for one, two in zip(norm.parameters(), plain.parameters()):
        torch.testing.assert_close(one.grad, two.grad, rtol=0, atol=2e-5)


def test_torch_fx_and_torch_compile():
    block = nn.Sequential(nn.Conv2d(3, 8, 3), build_norm_layer(dict(type='BN'), 8)[1]).eval()
    x = torch.randn(2, 3, 6, 6).to(memory_format=torch.channels_last)
    assert torch.equal(torch.fx.symbolic_trace(block)(x), block(x))
    block.train()
    compiled = torch.compile(block, backend='eager', fullgraph=True)
    torch.testing.assert_close(compiled(x), block(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize('kernel, stride, padding, dilation', [
    (3, 1, 1, 1), (3, 2, 1, 1), (3, 1, 2, 2), ((1, 3), 1, (0, 1), 1), (1, 1, 0, 1), (5, 2, 2, 1), (3, 1, 4, 1),
    (3, 3, 0, 1),
])  # fmt: skip
@pytest.mark.parametrize('maps_of', [(2, 19, 23), (64, 7, 7), (1, 9, 9)])
def test_derivatives_from_patches(kernel, stride, padding, dilation, maps_of):
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 6, kernel, stride, padding, dilation).double()
    geometry = Geometry.of(conv)
    x = torch.randn(maps_of[0], 5, *maps_of[1:], dtype=torch.float64).to(memory_format=torch.channels_last)
    y = conv(x).detach().to(memory_format=torch.channels_last)
    batch = batch_moments(y)
    for index in range(0, 32, 7):
        grid = subsampling_grid(len(y), *y.shape[2:], 32, index)
        planar = in_closed_form(x.contiguous(), y.contiguous(), batch, geometry, grid)
        torch.testing.assert_close(from_patches(x, y, batch, geometry, grid), planar, rtol=1e-9, atol=1e-11)
