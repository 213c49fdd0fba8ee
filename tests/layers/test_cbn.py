"""CrossIterBatchNorm2d against the paper's formulas, the recorded arrays and its own identities."""

import copy

import pytest
import torch
from torch import nn

from mmdet.layers import ConvModule, CrossIterBatchNorm2d

from .reference import PlainCBN

KINDS = {
    '1x1': dict(kernel_size=1),
    '3x3': dict(kernel_size=3, padding=1),
    'unpadded': dict(kernel_size=3),
    'strided': dict(kernel_size=3, stride=2, padding=1),
    'strided 1x1': dict(kernel_size=1, stride=2),
    'dilated': dict(kernel_size=3, padding=2, dilation=2),
    'oblong': dict(kernel_size=(1, 5), stride=(2, 3), padding=(0, 2), dilation=(1, 2)),
    'grouped': dict(kernel_size=3, padding=1, groups=2),
    'depthwise': dict(kernel_size=3, stride=2, padding=1, groups=4),
    'wide padding': dict(kernel_size=3, padding=3),
    'linear': None,
}


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
    assert norm.window.filled == 3 and norm.num_batches_tracked == 20


@pytest.mark.parametrize('kind', KINDS)
def test_closed_forms_equal_autograd(kind):
    torch.manual_seed(1)
    conv, x = make_conv(kind), make_input(kind, 1)
    norm = CrossIterBatchNorm2d(8).double()
    closed, through_graph = copy.deepcopy(norm), norm
    through_graph(conv(x), conv.weight)
    closed.after(conv, x)
    one, other = closed.window, through_graph.window
    torch.testing.assert_close(one.dvar, other.dvar, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(one.scalars, other.scalars, rtol=1e-11, atol=1e-12)
    per_channel = one.dmean.repeat_interleave(8 // one.dmean.shape[1], 1)
    torch.testing.assert_close(per_channel, other.dmean, rtol=1e-11, atol=1e-12)
    # Euler: degree 1 and 2 in the weight.
    mean, var, mean_w, var_w = closed.window.scalars[0]
    torch.testing.assert_close(mean_w, mean, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(var_w, 2 * var, rtol=1e-11, atol=1e-12)


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
