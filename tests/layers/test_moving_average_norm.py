"""Moving Average Batch Normalization against a plain transcription of its algorithm, and where it is simpler."""

import pytest
import torch
from torch import nn

from mmdet.layers import CenConv2d, ConvModule, MovingAverageBatchNorm2d, build_norm_layer

AXES = 0, 2, 3


class Reference:
    """Forward and backward of one channelwise layer, in lists; the statistics are numbers per channel."""

    def __init__(self, channels, m, warmup, renorm, r_max, momentum, eps=1e-5):
        self.m, self.warmup, self.renorm, self.r_max, self.momentum, self.eps = m, warmup, renorm, r_max, momentum, eps
        self.running, self.squares, self.products, self.step = torch.ones(channels).double(), [], [], 0

    def __call__(self, y, gamma, beta, grad):
        """Output, and the gradient of y for dL/dout = grad."""
        gamma, beta = gamma.detach().view(1, -1, 1, 1), beta.detach().view(1, -1, 1, 1)
        self.squares.append((y * y).mean(AXES))
        own = self.step < self.warmup
        square = self.squares[-1] if own else sum(self.squares[-self.m:]) / self.m
        rms = (square + self.eps).sqrt().view(1, -1, 1, 1)
        r = rms / (self.running + self.eps).sqrt().view(1, -1, 1, 1)
        r = r.clamp(1 / self.r_max, self.r_max) if self.step >= self.renorm else torch.ones_like(r)
        self.running = (1 - self.momentum) * self.running + self.momentum * square
        self.step += 1
        z = y / rms
        g = grad * gamma * r
        self.products.append((g * z).mean(AXES))
        product = self.products[-1] if own else sum(self.products[-self.m:]) / self.m
        return gamma * r * z + beta, (g - z * product.view(1, -1, 1, 1)) / rms


def layer_of(**options):
    torch.manual_seed(0)
    layer = MovingAverageBatchNorm2d(3, **options).double()
    nn.init.uniform_(layer.weight, 0.5, 1.5)
    nn.init.normal_(layer.bias)
    return layer


@pytest.mark.parametrize('m, warmup, renorm, r_max', [(1, 0, 0, 1.05), (3, 0, 0, 1.05), (3, 5, 6, 5.0), (2, 1, 0, 1.0)])
def test_ten_batches_equal_the_algorithm(m, warmup, renorm, r_max):
    layer = layer_of(buffer_size=m, warmup_iters=warmup, renorm_iters=renorm, r_max=r_max, momentum=0.1)
    reference = Reference(3, m, max(warmup, m - 1), renorm, r_max, momentum=0.1)
    for step in range(10):
        y = (torch.randn(2, 3, 4, 5).double() * (1 + step)).requires_grad_()
        grad = torch.randn(2, 3, 4, 5).double()
        expected, expected_grad = reference(y.detach(), layer.weight, layer.bias, grad)
        out = layer(y)
        (got,) = torch.autograd.grad(out, y, grad)
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(got, expected_grad)
    torch.testing.assert_close(layer.running_var, reference.running)


@pytest.mark.parametrize('m', [1, 3])
def test_a_window_of_equal_batches_has_the_gradient_of_the_formula(m):
    """Then nothing in it is an average of other things, and autograd can say what it must be."""
    layer = layer_of(buffer_size=m, warmup_iters=0, renorm_iters=10**6)
    y, grad = torch.randn(4, 3, 5, 5).double().requires_grad_(), torch.randn(4, 3, 5, 5).double()
    plain = y / (y.square().mean(AXES, keepdim=True) + layer.eps).sqrt()
    plain = plain * layer.weight.view(1, -1, 1, 1) + layer.bias.view(1, -1, 1, 1)
    inputs = y, layer.weight, layer.bias
    expected = torch.autograd.grad(plain, inputs, grad)
    for _ in range(m):
        out = layer(y)
        got = torch.autograd.grad(out, inputs, grad)
    torch.testing.assert_close(out, plain)
    torch.testing.assert_close(got, expected)


def test_a_run_that_was_stopped_continues_equally():
    batches = [torch.randn(2, 3, 4, 4).double() for _ in range(8)]

    def train(layer, batches):
        for y in batches:
            layer(y.requires_grad_()).square().sum().backward()

    whole = layer_of(buffer_size=3, warmup_iters=2, renorm_iters=4)
    train(whole, batches)
    first, second = (layer_of(buffer_size=3, warmup_iters=2, renorm_iters=4) for _ in range(2))
    train(first, batches[:5])
    second.load_state_dict(first.state_dict())
    train(second, batches[5:])
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), second.state_dict().values()))


def test_eval_mode_is_one_scale_per_channel_and_zero_rois_change_nothing():
    layer = layer_of()
    layer.running_var.uniform_(0.5, 4)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    y = torch.zeros(0, 3, 7, 7, dtype=torch.float64, requires_grad=True)
    layer(y).sum().backward()
    assert y.grad.shape == y.shape
    assert all(torch.equal(layer.state_dict()[key], value) for key, value in before.items())
    y = torch.randn(2, 3, 4, 4).double()
    reference = nn.BatchNorm2d(3).double().eval()
    reference.load_state_dict({k: before[k] for k in ('weight', 'bias', 'running_var')}, strict=False)
    torch.testing.assert_close(layer.eval()(y), reference(y))


def test_under_autocast_statistics_are_float32():
    layer, half = layer_of().float(), torch.randn(2, 3, 64, 64).to(torch.bfloat16)
    out = layer(half)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(layer.squares[0], half.float().square().mean(AXES))


def test_centred_convolution_subtracts_each_filter_s_mean():
    conv, plain = CenConv2d(4, 6, 3), nn.Conv2d(4, 6, 3)
    weight = torch.stack([filter - filter.mean() for filter in conv.weight])
    plain.load_state_dict(dict(weight=weight, bias=conv.bias))
    x = torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(conv(x), plain(x))


def test_by_name_in_a_block():
    block = ConvModule(3, 8, 3, conv_cfg=dict(type='CenConv2d'), norm_cfg=dict(type='MABN', buffer_size=2))
    assert isinstance(block.bn, MovingAverageBatchNorm2d) and block.bn.buffer_size == 2
    block(torch.rand(1, 3, 8, 8)).sum().backward()
    assert block.bn.products[0].abs().sum() > 0
    with pytest.raises(ValueError, match='buffer_size=0'):
        build_norm_layer(dict(type='MABN', buffer_size=0), 8)
