"""`conv_norm`: a norm in eval mode folded into a convolution that learns."""

import pytest
import torch
from torch import nn

from mmdet.layers import build_norm_layer, conv_norm, plan_cbn
from mmdet.layers.batch_stats import channel_sums
from mmdet.models import ResNet

CONVOLUTIONS = [dict(), dict(stride=2, padding=1), dict(groups=2), dict(dilation=2, padding=2)]


def pair(kind='BN', **conv):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, bias=False, **conv).double()
    norm = build_norm_layer(dict(type=kind), 6)[1].double().eval()
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.normal_()
        norm.running_var.uniform_(0.5, 2)
    return conv, norm, torch.randn(2, 4, 9, 8, dtype=torch.float64, requires_grad=True)


def kept(run) -> list[torch.Tensor]:
    """What `run` keeps for its backward pass."""
    tensors = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: tensors.append(t) or t, lambda t: t):
        run()
    return tensors


@pytest.mark.parametrize('kind', ['BN', 'SyncBN', 'CBN'])
@pytest.mark.parametrize('conv', CONVOLUTIONS, ids=str)
def test_folded_is_the_norm_of_the_convolution(kind, conv):
    conv, norm, x = pair(kind, **conv)
    learned = [x, conv.weight, norm.weight, norm.bias]
    outputs = conv_norm(conv, norm, x), norm(conv(x))
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)
    g = torch.randn_like(outputs[0])
    for got, expected in zip(*(torch.autograd.grad(out, learned, g) for out in outputs)):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize('frozen', [(), ('weight', 'bias')], ids=['learned', 'fixed'])
def test_only_the_input_is_kept(frozen):
    conv, norm, x = pair()
    for name in frozen:
        getattr(norm, name).requires_grad_(False)
    sizes = {t.numel() for t in kept(lambda: conv_norm(conv, norm, x)) if t is not conv.weight}
    assert x.numel() in sizes and sizes <= {x.numel(), norm.num_features}
    y = norm(conv(x))
    assert y.numel() in {t.numel() for t in kept(lambda: norm(conv(x)))}  # what folding spares


def test_autocast_computes_in_half_precision_and_gives_float32_gradients():
    conv, norm, x = pair(stride=2)
    conv, norm, x = conv.float(), norm.float(), x.detach().float().requires_grad_()
    learned = [x, conv.weight, norm.weight, norm.bias]
    outputs = []
    for run in (lambda: conv_norm(conv, norm, x), lambda: norm(conv(x))):
        with torch.autocast('cpu', torch.bfloat16):
            outputs.append(run())
    assert outputs[0].dtype == outputs[1].dtype == torch.bfloat16
    exact = conv_norm(conv, norm, x)
    g = torch.randn_like(exact)
    gradients = [torch.autograd.grad(out, learned, g.to(out.dtype)) for out in (*outputs, exact)]
    for folded, plain, full in zip(*gradients):
        assert folded.dtype == torch.float32
        assert (folded - full).abs().max() < 2 * (plain - full).abs().max()


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last, None])
def test_half_precision_gradients_are_summed_in_float32(layout):
    torch.manual_seed(0)
    grad = torch.randn(2, 24, 61, 67).bfloat16()
    grad = grad.movedim(1, -1).flatten(0, 2).contiguous() if layout is None else grad.to(memory_format=layout)
    exact = grad.double().sum([0, *range(2, grad.dim())])
    assert (channel_sums(grad, torch.float32) - exact).abs().max() < 1e-3  # bfloat16's own sum is off by 0.5 and more


def test_a_float16_gradient_of_a_scaled_loss_does_not_overflow():
    conv, norm, _ = pair()
    conv, norm, x = conv.float(), norm.float(), torch.rand(2, 4, 40, 40)
    with torch.autocast('cpu', torch.float16):
        out = conv_norm(conv, norm, x)
    out.backward(torch.full_like(out, 100.0))
    assert out.dtype == torch.float16
    torch.testing.assert_close(norm.bias.grad, torch.full((6,), 100.0 * 2 * 38 * 38))  # past float16's 65504


def test_what_folding_does_not_fit_goes_the_plain_way():
    conv, norm, x = pair()
    plain = norm(conv(x))
    with torch.no_grad():
        assert torch.equal(conv_norm(conv, norm, x), plain)
    conv.requires_grad_(False)
    assert torch.equal(conv_norm(conv, norm, x), plain)
    for conv in (nn.Conv2d(4, 6, 3, bias=True), nn.Conv2d(4, 6, 3, padding=1, padding_mode='reflect', bias=False),
                 nn.Conv2d(4, 6, 3, padding='same', bias=False)):  # fmt: skip
        conv.double()
        assert torch.equal(conv_norm(conv, norm, x), norm(conv(x)))
    norm.train()
    assert conv_norm(conv, norm, x).mean().isclose(norm.bias.mean())  # normalised with the batch's own statistics


@pytest.mark.parametrize('watched', [0, 1])
def test_hooks_see_what_lies_between(watched):
    conv, norm, x = pair()
    seen = []
    (conv, norm)[watched].register_forward_hook(lambda module, inputs, output: seen.append(output))
    conv_norm(conv, norm, x)
    assert len(seen) == 1


def test_half_precision_keeps_batchnorms_float32():
    conv, norm, x = pair()
    conv, norm, x = conv.bfloat16(), norm.bfloat16(), x.detach().bfloat16()
    assert torch.equal(conv_norm(conv, norm, x), norm(conv(x)))


def test_convert_cbn_still_sees_the_backbones_convolutions():
    backbone = ResNet(18).train()  # its norms are in eval mode
    assert len(plan_cbn(backbone).pairs) == 20
