"""The compiled kernels of CBN's training forward against its plain torch code.

They are CUDA kernels: on a GPU as they are, and on the CPU where tests/cuda_on_cpu runs them; the layer around them
then takes its branches for CUDA.
"""

import contextlib
import copy

import pytest
import torch
from like_cuda import LikeCuda
from torch import nn
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

from mmdet.layers import CrossIterBatchNorm2d, batch_stats
from mmdet.layers.cbn import derivatives, kernels, layer

from .reference import KINDS

CONVS = {
    **{kind: options for kind, options in KINDS.items() if options},  # no Linear
    'biased': dict(kernel_size=3, padding=1, bias=True),
    'wide padding': dict(kernel_size=3, padding=4),
    'large kernel': dict(kernel_size=5, padding=2),
}


@pytest.fixture(params=['cpu', pytest.param('cuda', marks=pytest.mark.cuda)])
def device(request):
    if not kernels.take(torch.empty(0, device=request.param)):
        pytest.skip('no compiled CBN kernel takes this device; tests/cuda_on_cpu has them run on the CPU')
    with LikeCuda() if request.param == 'cpu' else contextlib.nullcontext():
        yield request.param


def plainly(norm, *args, **options):
    """``norm``'s call without the kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, 'take', lambda y: False)
        return norm.after(*args, **options)


def make(device, kind='3x3', dtype=torch.float64, **options):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, **{'bias': False, **CONVS[kind]}).to(device, dtype)
    norm = CrossIterBatchNorm2d(8, **options).to(device, dtype)
    if norm.affine:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias)
    return conv, norm, copy.deepcopy(norm)


def batch(step, device, dtype=torch.float64):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(3 + step % 2, 4, 10 + step % 3, 9 + step % 2, generator=generator, dtype=dtype) + 0.3
    return x.to(device)


def assert_equal_state(one, other, **tolerance):
    assert one.steps == other.steps and (one.history is None) == (other.history is None)
    for key, value in one.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[key], **tolerance)
    for key, value in (one.history.state() if one.history else {}).items():
        torch.testing.assert_close(torch.as_tensor(value), torch.as_tensor(other.history.state()[key]), **tolerance)


def train(conv, norm, plain, steps, device, dtype=torch.float64, rtol=1e-10, atol=1e-10):
    """Both on the same batches and weights, which change; everything they give must agree."""
    for step in range(steps):
        inputs = [batch(step, device, dtype).requires_grad_() for _ in range(2)]
        outs = [norm.after(conv, inputs[0]), plainly(plain, conv, inputs[1])]
        torch.testing.assert_close(*outs, rtol=rtol, atol=atol)
        direction = torch.randn_like(outs[0])
        grads = []
        for out, x, one in zip(outs, inputs, (norm, plain)):
            wanted = [p for p in (x, conv.weight, one.weight, one.bias) if p is not None and p.requires_grad]
            grads.append(torch.autograd.grad(out, wanted, direction))
        for got, want in zip(*grads):
            torch.testing.assert_close(got, want, rtol=rtol, atol=atol * 10)
        assert_equal_state(norm, plain, rtol=rtol, atol=atol)
        with torch.no_grad():
            conv.weight.add_(torch.randn_like(conv.weight) * 0.05)


def test_twenty_iterations(device):
    train(*make(device, derivative_fraction=1 / 16), steps=20, device=device)


@pytest.mark.parametrize('kind, fraction', [*((kind, 1 / 16) for kind in CONVS), ('1x1', 1 / 4), ('3x3', 1 / 4)])
def test_every_convolution(device, kind, fraction):
    train(*make(device, kind, derivative_fraction=fraction), steps=5, device=device)


@pytest.mark.parametrize(
    'options',
    [
        dict(rho=0.5),
        dict(rho=0.0),
        dict(compensation='root'),
        dict(compensation='root', rho=0.5, derivative_fraction=1 / 16),
        dict(affine=False),
        dict(track_running_stats=False),
        dict(momentum=None),
        dict(buffer_num=0),
        dict(buffer_num=1),
        dict(buffer_num=6, derivative_fraction=1 / 16),
        dict(burnin_iters=3),
        dict(full_gradient=True),
        dict(full_gradient=True, compensation='root', derivative_fraction=1 / 16),
    ],
    ids=str,
)
def test_every_option(device, options):
    train(*make(device, **options), steps=6, device=device)


@pytest.mark.parametrize('fraction', [1.0, 1 / 16])
def test_synchronised(device, fraction, monkeypatch):
    """A group of one process: all that is exchanged stays what it is."""
    monkeypatch.setattr(layer, 'process_group', lambda wanted: 'alone' if wanted else None)
    monkeypatch.setattr(batch_stats.dist, 'all_reduce', lambda *args, **options: None)
    conv, norm, plain = make(device, derivative_fraction=fraction, sync=True)
    plain.sync = False
    train(conv, norm, plain, 5, device)


@pytest.mark.parametrize('missing', ['weight', 'bias'])
def test_scale_or_shift_alone(device, missing):
    conv, norm, plain = make(device, full_gradient=True)
    norm.register_parameter(missing, None)
    plain.register_parameter(missing, None)
    train(conv, norm, plain, 3, device)


@pytest.mark.parametrize('fraction', [1.0, 1 / 16])
def test_float32(device, fraction):
    train(*make(device, dtype=torch.float32, derivative_fraction=fraction), 10, device, torch.float32, 1e-3, 1e-4)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('kind', ['1x1', '3x3'])
@pytest.mark.parametrize('scale', [1.0, 1e3])
def test_autocast(device, dtype, kind, scale):
    conv, norm, plain = make(device, kind, torch.float32, derivative_fraction=1 / 16)
    for step in range(6):
        x = batch(step, device, torch.float32) * scale
        with torch.autocast(device, dtype):
            out, want = norm.after(conv, x), plainly(plain, conv, x)
        assert out.dtype == dtype and norm.history.dvar.dtype == torch.float32
        torch.testing.assert_close(out.float(), want.float(), rtol=0.03, atol=0.03)
        got, want = (layer.history.dvar.flatten() for layer in (norm, plain))
        assert torch.cosine_similarity(got, want, dim=0) > 0.999
        torch.testing.assert_close(norm.history.dmean, plain.history.dmean, rtol=0.01, atol=0.01 * scale)
        torch.testing.assert_close(norm.running_var, plain.running_var, rtol=1e-4, atol=0)
        with torch.no_grad():
            conv.weight.add_(torch.randn_like(conv.weight) * 0.01)


def test_half_precision_model(device):
    conv, norm, plain = make(device, '3x3', torch.bfloat16, derivative_fraction=1 / 16)
    for step in range(5):
        x = batch(step, device, torch.bfloat16)
        out, want = norm.after(conv, x), plainly(plain, conv, x)
        torch.testing.assert_close(out, want, rtol=0.03, atol=0.03)
        out.sum().backward()
    assert norm.running_mean.dtype == torch.bfloat16 and norm.history.dvar.dtype == torch.float32
    torch.testing.assert_close(norm.running_var, plain.running_var)


@pytest.mark.parametrize('fraction', [1.0, 1 / 16])
def test_other_memory_formats_and_linear(device, fraction):
    conv, norm, plain = make(device, derivative_fraction=fraction)
    conv.to(memory_format=torch.channels_last)
    for step in range(5):
        x = batch(step, device).to(memory_format=torch.channels_last)
        for given in (x, x.contiguous(), x.transpose(2, 3).contiguous().transpose(2, 3)):
            torch.testing.assert_close(norm.after(conv, given), plainly(plain, conv, given), rtol=1e-10, atol=1e-10)
        assert_equal_state(norm, plain, rtol=1e-10, atol=1e-10)
        nn.init.normal_(conv.weight)
    linear = nn.Linear(5, 8).to(device, torch.float64)
    norm, plain = (CrossIterBatchNorm2d(8, derivative_fraction=fraction).to(device, torch.float64) for _ in range(2))
    for _ in range(5):
        x = torch.randn(40, 5, dtype=torch.float64, device=device)
        torch.testing.assert_close(norm.after(linear, x), plainly(plain, linear, x), rtol=1e-10, atol=1e-10)
    assert_equal_state(norm, plain, rtol=1e-10, atol=1e-10)


def test_subsampling_over_rois(device):
    conv, norm, plain = make(device, derivative_fraction=1 / 16)
    for _ in range(5):
        x = torch.randn(70, 4, 7, 5, dtype=torch.float64, device=device)
        torch.testing.assert_close(norm.after(conv, x), plainly(plain, conv, x), rtol=1e-10, atol=1e-10)
        assert_equal_state(norm, plain, rtol=1e-10, atol=1e-10)
        nn.init.normal_(conv.weight)


def test_history_and_weight_that_change_on_the_way(device):
    conv, norm, plain = make(device, derivative_fraction=1 / 16)
    train(conv, norm, plain, 3, device)
    with torch.no_grad():  # no entry, but running statistics
        x = batch(3, device)
        torch.testing.assert_close(norm.after(conv, x), plainly(plain, conv, x))
    assert_equal_state(norm, plain)
    conv.weight.requires_grad = False  # entries without derivatives from here on
    train(conv, norm, plain, 2, device)
    assert norm.history.dvar.shape[2] == 0
    conv.weight.requires_grad = True
    train(conv, norm, plain, 5, device)
    for one in (norm, plain):
        one.buffer_num = 0
    train(conv, norm, plain, 2, device)


@pytest.mark.parametrize('reentrant', [True, False])
def test_activation_checkpointing(device, reentrant):
    conv, norm, again = make(device, full_gradient=True)
    for step in range(6):
        x, same = (batch(step, device).requires_grad_() for _ in range(2))
        out = norm.after(conv, x)
        saved = torch.utils.checkpoint.checkpoint(again.after, conv, same, use_reentrant=reentrant)
        assert torch.equal(out, saved)
        direction, grads = torch.randn_like(out), []
        for o, leaf in ((out, x), (saved, same)):
            conv.weight.grad = None
            o.backward(direction)
            grads += [leaf.grad, conv.weight.grad]
        torch.testing.assert_close(grads[:2], grads[2:])
        assert_equal_state(norm, again)
        with torch.no_grad():
            conv.weight.add_(torch.randn_like(conv.weight) * 0.05)


def after_three_steps(device):
    """The layers, and a fourth batch: its input, output, statistics and geometry."""
    conv, norm, _ = make(device)
    for step in range(3):
        norm.after(conv, batch(step, device))
    x = batch(3, device)
    y = conv(x).detach()
    return conv, norm, x, y, batch_stats.batch_moments(y), list(derivatives.Geometry.of(conv))


def test_opcheck(device):
    conv, norm, x, y, (mean, var, count), geometry = after_three_steps(device)
    opcheck(torch.ops.mmdet.cbn_derivatives, (x, y, mean, *geometry, [1, 4, 4], [0, 2, 3]))
    new = torch.ops.mmdet.cbn_derivatives(x, y, mean, *geometry, [1, 4, 4], [0, 2, 3])
    history = norm.history
    held = [t.clone() for t in (history.values, history.dmean, history.dvar)]
    running = [norm.running_mean.clone(), norm.running_var.clone(), norm.num_batches_tracked]
    weight = conv.weight.detach()
    for arguments in ((*held, new, *running, 0.1, 3, 1), (*held, None, None, None, None, 0.1, 2, 0)):
        opcheck(torch.ops.mmdet.cbn_pool, (weight, mean, var, None, *arguments, count, 1.0, True, True, 1e-5))
    opcheck(torch.ops.mmdet.cbn_pool, (None, mean, var, *[None] * 8, 0.1, 0, 0, count, 1.0, False, False, 1e-5))


@pytest.mark.parametrize('full_gradient', [False, True])
@pytest.mark.parametrize('grid', [((), ()), ((1, 4, 4), (0, 2, 3))])
def test_opcheck_of_the_whole_forward(device, full_gradient, grid):
    conv, norm, x, y, (mean, *_), geometry = after_three_steps(device)
    history = norm.history
    held = [t.clone() for t in (history.values, history.dmean, history.dvar)]
    running = [t.clone() for t in (norm.running_mean, norm.running_var, norm.num_batches_tracked)]
    offsets = derivatives.kernel_offsets(x, y, derivatives.Geometry(*geometry), mean.dtype)
    arguments = (
        y.requires_grad_(), conv.weight, None, norm.weight, norm.bias, x, y.detach(), *geometry, *grid, *offsets,
        *held, *running, 0.1, 3, 1, True, 1.0, True, full_gradient, 1e-5,
    )  # fmt: skip
    checks = ('test_schema', 'test_autograd_registration', 'test_faketensor')
    opcheck(torch.ops.mmdet.cbn_train, arguments, test_utils=checks)


def test_no_second_derivative(device):
    conv, norm, _ = make(device, full_gradient=True)
    for step in range(2):
        out = norm.after(conv, batch(step, device))
    grads = torch.autograd.grad(out.square().sum(), [conv.weight, norm.weight, norm.bias], create_graph=True)
    for grad in grads:
        with pytest.raises(RuntimeError, match='no gradient of its own'):
            grad.sum().backward(retain_graph=True)


def test_what_does_not_fit_is_refused(device):
    conv, norm, x, y, (mean, var, count), geometry = after_three_steps(device)
    history = norm.history
    of_batch, step = torch.ops.mmdet.cbn_derivatives, torch.ops.mmdet.cbn_pool

    def whole(y, x=None, enters=False):
        nothing = (None,) * 3
        return torch.ops.mmdet.cbn_train(
            y, None, None, None, None, x, None, [], [], [], [], 1, [], [], None, None, *nothing, *nothing, 0.1, 0, 0,
            enters, 1.0, False, False, 1e-5,
        )  # fmt: skip

    with pytest.raises(ValueError, match='do not fit'):
        of_batch(x[:1], y, mean, *geometry, [1, 1, 1], [0, 0, 0])
    with pytest.raises(ValueError, match='misses y'):
        of_batch(x, y, mean, *geometry, [1, 1, 1], [0, 99, 0])
    with pytest.raises(ValueError, match='mean must be'):
        of_batch(x, y, mean[1:], *geometry, [1, 1, 1], [0, 0, 0])
    held = history.values, history.dmean, history.dvar
    rest = None, None, None, 0.1, 3, 0, count, 1.0, False, False, 1e-5
    new = torch.cat([history.dvar[:, 0], history.dmean[:, 0]])[None]
    with pytest.raises(ValueError, match='weight'):
        step(conv.weight[1:], mean, var, None, *held, new, *rest)
    with pytest.raises(ValueError, match='new batch'):
        step(conv.weight, mean, var, None, *held, new[:, 1:], *rest)
    with pytest.raises(ValueError, match='contiguous'):
        step(conv.weight, mean, var, None, *held[:2], history.dvar.mT.contiguous().mT, new, *rest)
    with pytest.raises(ValueError, match='4 of them'):
        step(conv.weight, mean, var, None, *held, new, None, None, None, 0.1, 4, 0, count, 1.0, False, False, 1e-5)
    with pytest.raises(ValueError, match='must be .N, C'):
        whole(y[:0])
    with pytest.raises(ValueError, match='come together'):
        whole(y, x)
    with pytest.raises(ValueError, match='enters the history'):
        whole(y, enters=True)


@pytest.mark.cuda
@pytest.mark.parametrize('fraction', [1.0, 1 / 16])
def test_a_gpu_is_not_waited_for(fraction):
    conv, norm, _ = make('cuda', dtype=torch.float32, derivative_fraction=fraction, full_gradient=True)
    first, *others = (batch(step, 'cuda', torch.float32) for step in range(4))
    norm.after(conv, first).square().sum().backward()  # what is loaded once
    torch.cuda.set_sync_debug_mode('error')
    try:
        for x in others:
            norm.after(conv, x).square().sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert norm.history.filled == 3 and conv.weight.grad.isfinite().all()


class Counter(TorchDispatchMode):
    """Operators that read or write memory: views, metadata and allocations do not count."""

    FREE = set('detach alias empty empty_like new_empty view promote_types t transpose unsqueeze slice select'.split())

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split('::')[1]
        if name not in self.FREE:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('kind', ['1x1', '3x3'])
def test_a_training_forward_takes_five_operators_beside_the_convolution(device, kind):
    conv, norm, _ = make(device, kind, torch.float32, derivative_fraction=1 / 16)
    for step in range(4):
        norm.after(conv, batch(step, device, torch.float32))
    x = batch(4, device, torch.float32)
    with Counter() as counter:
        norm.after(conv, x)
    assert counter.names == [
        'convolution', 'batch_norm_update_stats', 'cbn_derivatives', 'add_', 'cbn_pool', 'batch_norm_elemt',
    ]  # fmt: skip
