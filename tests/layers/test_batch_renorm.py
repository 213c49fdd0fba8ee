"""Batch Renormalization against a plain transcription of the paper's algorithm."""

import pytest
import torch
from torch import nn

from mmdet.layers import BatchRenorm, build_norm_layer


def reference(y, running_mean, running_var, gamma, beta, r_max, d_max, eps=1e-5):
    shape = (1, -1, 1, 1)
    mean = y.mean((0, 2, 3))
    var = y.var((0, 2, 3), unbiased=False)
    std, running = (var + eps).sqrt(), (running_var + eps).sqrt()
    r = (std / running).clamp(1 / r_max, r_max).detach()
    d = ((mean - running_mean) / running).clamp(-d_max, d_max).detach()
    hat = (y - mean.view(shape)) / std.view(shape) * r.view(shape) + d.view(shape)
    return gamma.view(shape) * hat + beta.view(shape)


def layer_and_input(**options):
    torch.manual_seed(0)
    layer = BatchRenorm(6, momentum=0.1, **options).double()
    with torch.no_grad():
        layer.weight.uniform_(0.5, 1.5)
        layer.bias.normal_()
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.1, 9)
    return layer, torch.randn(3, 6, 4, 5, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize('r_max, d_max', [(1.0, 0.0), (1.5, 0.3), (3.0, 5.0)])
def test_output_and_gradients_equal_the_paper_s(r_max, d_max):
    layer, y = layer_and_input(r_max=r_max, d_max=d_max, warmup_iters=0, ramp_iters=0)
    expected = reference(
        y, layer.running_mean.clone(), layer.running_var.clone(), layer.weight, layer.bias, r_max, d_max
    )
    out = layer(y)
    torch.testing.assert_close(out, expected)
    direction = torch.randn_like(out)
    parameters = (y, layer.weight, layer.bias)
    for got, want in zip(
        torch.autograd.grad(out, parameters, direction), torch.autograd.grad(expected, parameters, direction)
    ):
        torch.testing.assert_close(got, want)


def test_within_the_limits_training_is_eval_mode():
    layer, y = layer_and_input(r_max=1e6, d_max=1e6, warmup_iters=0, ramp_iters=0)
    frozen = nn.BatchNorm2d(6).double().eval()
    frozen.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(y), frozen(y))


def test_warm_up_is_batch_norm_and_the_limits_widen_linearly():
    layer, y = layer_and_input(warmup_iters=2, ramp_iters=4)
    plain = nn.BatchNorm2d(6).double()
    plain.load_state_dict(layer.state_dict())
    for _ in range(2):
        torch.testing.assert_close(layer(y), plain(y))
    torch.testing.assert_close(layer.state_dict(), plain.state_dict())
    layer(y)  # forward 2: the ramp begins at r_max = 1
    before = layer.running_mean.clone(), layer.running_var.clone()
    expected = reference(y, *before, layer.weight, layer.bias, 1 + 2 / 4, 5 / 4)
    torch.testing.assert_close(layer(y), expected)


def test_state_dict_is_batch_norm_s():
    assert list(BatchRenorm(4).state_dict()) == list(nn.BatchNorm2d(4).state_dict())


def test_zero_rois_leave_the_state_alone_and_keep_the_graph():
    layer, _ = layer_and_input()
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    y = torch.zeros(0, 6, 7, 7, dtype=torch.float64, requires_grad=True)
    layer(y).sum().backward()
    assert y.grad.shape == y.shape
    torch.testing.assert_close(layer.state_dict(), before)


def test_one_value_per_channel_is_refused_by_name():
    with pytest.raises(ValueError, match=r'one value per channel \(input \(1, 4, 1, 1\)\)'):
        BatchRenorm(4)(torch.rand(1, 4, 1, 1))


@pytest.mark.parametrize(
    'options', [dict(r_max=0.5), dict(d_max=-1), dict(warmup_iters=-1), dict(ramp_iters=-2)]
)
def test_limits_out_of_range(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        BatchRenorm(4, **options)


def test_it_is_built_by_name():
    name, layer = build_norm_layer(dict(type='BatchRenorm', r_max=2.0), 8)
    assert name == 'bn' and layer.r_max == 2.0
