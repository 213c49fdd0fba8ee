"""Deformable convolutions against torchvision's operator, a slow loop and numerical gradients."""

import math

import pytest
import torch
from torchvision.ops import deform_conv2d

from mmdet.config.errors import UserError
from mmdet.layers import ConvModule, build_conv_layer, build_norm_layer, conv_norm
from mmdet.models import ResNet
from mmdet.registry import MODELS

KINDS = ['DCN', 'DCNv2']
GEOMETRIES = [
    dict(padding=1), dict(stride=2, padding=2, dilation=2, groups=2), dict(padding=1, deform_groups=2),
    dict(kernel_size=(3, 1), padding=(1, 0)), dict(kernel_size=(2, 3), stride=(1, 2), dilation=(2, 1), deform_groups=2),
]  # fmt: skip


def layer(kind, lively=True, **options):
    torch.manual_seed(0)
    cfg = dict(type=kind, deform_groups=options.pop('deform_groups', 1))
    conv = build_conv_layer(cfg, 4, 6, options.pop('kernel_size', 3), **options).double()
    if lively:
        torch.nn.init.normal_(conv.conv_offset.weight, std=0.3)
        torch.nn.init.normal_(conv.conv_offset.bias, std=0.3)
    return conv


def inputs():
    return torch.randn(2, 4, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def slow(x, values, conv, modulated, groups, deform_groups):
    """Tap by tap, as the papers have it: offsets (dy, dx) of every tap, then the scales."""
    height, width = conv.kernel_size
    taps, per = height * width, x.shape[1] // deform_groups
    out = x.new_zeros(len(x), conv.out_channels, *values.shape[2:])
    for n in range(len(x)):
        for i in range(values.shape[2]):
            for j in range(values.shape[3]):
                column = x.new_zeros(x.shape[1], taps)
                for c in range(x.shape[1]):
                    for tap in range(taps):
                        index = (c // per) * taps + tap
                        y = i * conv.stride[0] - conv.padding[0] + (tap // width) * conv.dilation[0]
                        z = j * conv.stride[1] - conv.padding[1] + (tap % width) * conv.dilation[1]
                        y, z = y + values[n, 2 * index, i, j].item(), z + values[n, 2 * index + 1, i, j].item()
                        read = bilinear(x[n, c], y, z)
                        if modulated:
                            read = read * values[n, 2 * taps * deform_groups + index, i, j].sigmoid()
                        column[c, tap] = read
                columns = column.view(groups, -1)
                weight = conv.weight.view(groups, conv.out_channels // groups, -1)
                out[n, :, i, j] = torch.einsum('gok,gk->go', weight, columns).flatten()
    return out if conv.bias is None else out + conv.bias[:, None, None]


def bilinear(plane, y, x):
    total, top, left = plane.new_zeros(()), math.floor(y), math.floor(x)
    for row in (top, top + 1):
        for column in (left, left + 1):
            if 0 <= row < plane.shape[0] and 0 <= column < plane.shape[1]:
                total = total + plane[row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('geometry', GEOMETRIES, ids=str)
def test_equals_torchvisions_operator_and_a_slow_loop(kind, geometry):
    conv, x = layer(kind, **geometry), inputs()
    taps = conv.weight[0, 0].numel() * geometry.get('deform_groups', 1)
    values, mask = conv.conv_offset(x), None
    assert values.shape[1] == taps * (2 if kind == 'DCN' else 3)
    if kind == 'DCNv2':
        mask = values[:, 2 * taps :].sigmoid()
    rest = conv.stride, conv.padding, conv.dilation
    expected = deform_conv2d(x, values[:, : 2 * taps], conv.weight, conv.bias, *rest, mask)
    torch.testing.assert_close(conv(x), expected, rtol=0, atol=1e-12)
    groups, deform_groups = geometry.get('groups', 1), geometry.get('deform_groups', 1)
    with torch.no_grad():
        reference = slow(x, values, conv, kind == 'DCNv2', groups, deform_groups)
    torch.testing.assert_close(conv(x), reference)


@pytest.mark.parametrize('kind, scale', [('DCN', 1.0), ('DCNv2', 0.5)])
def test_begins_as_a_plain_convolution(kind, scale):
    conv, x = layer(kind, lively=False, stride=2, padding=1, bias=False), inputs()
    torch.testing.assert_close(conv(x), scale * torch.nn.functional.conv2d(x, conv.weight, None, 2, 1))
    assert sorted(conv.state_dict()) == ['conv_offset.bias', 'conv_offset.weight', 'weight']


@pytest.mark.parametrize('kind', KINDS)
def test_by_default_it_has_a_bias_and_one_deformable_group(kind):
    plain = MODELS.build(dict(type=kind, in_channels=4, out_channels=6, kernel_size=3))
    assert plain.bias.shape == (6,) and plain.conv_offset.out_channels == 9 * (2 if kind == 'DCN' else 3)
    assert plain.stride == plain.dilation == plain.conv_offset.stride == plain.conv_offset.dilation == (1, 1)
    assert plain.padding == plain.conv_offset.padding == (0, 0) and plain.groups == 1


@pytest.mark.parametrize('kind', KINDS)
def test_gradients_are_numerical_ones(kind):
    conv, x = layer(kind, padding=1), inputs()[:1, :, :4, :4].clone().requires_grad_()
    parameters = dict(conv.named_parameters())

    def run(x, *tensors):
        return torch.func.functional_call(conv, dict(zip(parameters, tensors)), (x,))

    assert torch.autograd.gradcheck(run, (x, *parameters.values()), fast_mode=True)


@pytest.mark.parametrize('kind', KINDS)
def test_a_block_keeps_the_offsets_at_their_start_and_takes_half_precision(kind):
    block = ConvModule(4, 6, 3, padding=1, conv_cfg=dict(type=kind), norm_cfg=dict(type='GN', num_groups=2))
    assert block.conv.conv_offset.weight.eq(0).all() and block.conv.weight.std() > 0.1 and block.conv.bias is None
    x = inputs().float().requires_grad_()
    with torch.autocast('cpu', torch.bfloat16):
        out = block.conv(x.bfloat16())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), block.conv(x), rtol=0.02, atol=0.02)
    out.float().sum().backward()
    assert x.grad.isfinite().all() and block.conv.conv_offset.weight.grad.abs().max() > 0
    assert block(inputs()[:0].float()).shape == (0, 6, 7, 6)


@pytest.mark.parametrize('norm_cfg', [dict(type='CBN', buffer_num=2), dict(type='BN'), dict(type='GN', num_groups=2)])
def test_norms_after_it_see_what_they_see_after_a_convolution_of_the_moved_input(norm_cfg):
    """All taps one cell further in x are a plain convolution of the shifted input; CBN compensates alike."""
    deformed, plain = layer('DCN', lively=False, bias=False), torch.nn.Conv2d(4, 6, 3, bias=False).double()
    deformed.requires_grad_(False)
    deformed.conv_offset.bias[1::2] = 1
    deformed.weight.requires_grad_()
    plain.load_state_dict(dict(weight=deformed.weight.detach().clone()))
    norms = [build_norm_layer(norm_cfg, 6)[1].double().train() for _ in range(2)]
    for step in range(4):
        x = torch.randn(2, 4, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        moved = torch.cat([x[..., 1:], torch.zeros_like(x[..., :1])], dim=-1)
        outputs = [conv_norm(deformed, norms[0], x), conv_norm(plain, norms[1], moved)]
        torch.testing.assert_close(*outputs)
        for conv, out in zip((deformed, plain), outputs):
            gradient, = torch.autograd.grad(out.pow(3).sum(), conv.weight)
            conv.weight.data -= 0.01 * gradient
        torch.testing.assert_close(deformed.weight, plain.weight)


def test_a_resnet_has_them_where_it_is_told():
    dcn = dict(type='DCNv2', deform_groups=2)
    options = dict(depth=50, base_channels=4, stage_with_dcn=(False, True, True, False))
    model = ResNet(dcn=dcn, **options)
    kinds = [type(block.conv2).__name__ for name in model.stages for block in getattr(model, name)]
    assert kinds == ['Conv2d'] * 3 + ['ModulatedDeformConv2d'] * 10 + ['Conv2d'] * 3
    assert model.layer2[0].conv2.conv_offset.out_channels == 2 * 27
    assert type(model.layer2[0].conv1) is type(model.layer2[0].conv3) is torch.nn.Conv2d
    model = ResNet(dcn=dict(dcn, fallback_on_stride=True), **options)
    assert type(model.layer2[0].conv2) is torch.nn.Conv2d and type(model.layer2[1].conv2) is not torch.nn.Conv2d
    model = ResNet(dcn=dict(dcn, fallback_on_stride=True), style='caffe', **options)  # the stride is elsewhere
    assert type(model.layer2[0].conv2) is not torch.nn.Conv2d


@pytest.mark.parametrize('build, message', [
    (lambda: layer('DCN', deform_groups=3), 'deform_groups=3 must divide the 4 input channels'),
    (lambda: layer('DCN', deform_groups=0), 'deform_groups=0 must divide'),
    (lambda: layer('DCN', deform_groups=-2), 'deform_groups=-2 must divide'),
    (lambda: ResNet(18, dcn=dict(type='DCN'), stage_with_dcn=(True,) * 4), 'depth=18 has no bottlenecks for dcn'),
    (lambda: ResNet(50, dcn=dict(type='DCN')), 'must say for 4 stages which have dcn'),
    (lambda: ResNet(50, dcn=dict(type='DCN'), stage_with_dcn=(True,)), 'must say for 4 stages'),
    (lambda: ResNet(50, dcn=dict(type='DCNv3'), stage_with_dcn=(True,) * 4), "unknown type 'DCNv3'"),
    (lambda: ResNet(50, dcn=dict(type='DCN', deformable_groups=2), stage_with_dcn=(True,) * 4), 'deformable_groups'),
])  # fmt: skip
def test_what_does_not_go_together_is_said(build, message):
    with pytest.raises(UserError, match=message):
        build()
