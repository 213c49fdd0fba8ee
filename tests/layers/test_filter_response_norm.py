"""Filter Response Normalization against its formula, image by image and channel by channel."""

import pytest
import torch
from torch import nn

from mmdet.layers import TLU, ConvModule, FilterResponseNorm2d


@pytest.mark.parametrize('learnable', [False, True])
def test_output_and_gradients_equal_the_formula(learnable):
    torch.manual_seed(0)
    layer = FilterResponseNorm2d(3, eps=1e-3, learnable_eps=learnable).double()
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    y = torch.randn(2, 3, 4, 5).double().requires_grad_()
    eps = layer.eps if learnable else [1e-3] * 3

    def normalised(c, m):
        return layer.weight[c] * m / (m.square().mean() + eps[c]).sqrt() + layer.bias[c]

    rows = [torch.stack([normalised(c, m) for c, m in enumerate(image)]) for image in y]
    out, expected = layer(y), torch.stack(rows)
    torch.testing.assert_close(out, expected)
    inputs, grad = (y, *layer.parameters()), torch.randn_like(out)
    torch.testing.assert_close(torch.autograd.grad(out, inputs, grad), torch.autograd.grad(expected, inputs, grad))


def test_an_image_does_not_see_the_others():
    layer, y = FilterResponseNorm2d(4), torch.randn(3, 4, 6, 6)
    torch.testing.assert_close(layer(y), torch.cat([layer(image[None]) for image in y]))
    assert torch.equal(layer(y), layer.eval()(y))
    assert layer(y[:0]).shape == (0, 4, 6, 6)


def test_tlu_is_relu_with_a_learned_threshold():
    tlu = TLU(3)
    y = torch.randn(2, 3, 5, 5)
    assert torch.equal(tlu(y), y.relu())
    nn.init.constant_(tlu.tau, -0.4)
    torch.testing.assert_close(tlu(y), (y + 0.4).relu() - 0.4)
    tlu(y).sum().backward()
    torch.testing.assert_close(tlu.tau.grad, (y < -0.4).sum((0, 2, 3)).float())


def test_in_a_block_tlu_takes_relu_s_place_and_no_other_s():
    norm = dict(type='FRN')
    assert isinstance(ConvModule(3, 4, 1, norm_cfg=norm).activate, TLU)
    assert ConvModule(3, 4, 1, norm_cfg=norm, act_cfg=None).activate is None
    assert isinstance(ConvModule(3, 4, 1, norm_cfg=norm, act_cfg=dict(type='SiLU')).activate, nn.SiLU)
    block = ConvModule(3, 4, 3, norm_cfg=norm)
    block(torch.rand(1, 3, 8, 8)).sum().backward()
    assert all(p.grad is not None for p in block.parameters())


def test_half_precision_is_normalised_in_float32():
    half = torch.full((1, 1, 8, 8), 1e3, dtype=torch.float16)  # its square is beyond float16
    torch.testing.assert_close(FilterResponseNorm2d(1)(half), torch.ones_like(half))
