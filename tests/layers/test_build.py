"""`conv_cfg`, `norm_cfg`, `act_cfg` and `upsample_cfg`: one registry and one rule, which a user's file can add to."""

import pytest
import torch
import torchvision
from torch import nn

from mmdet.config.errors import UserError
from mmdet.layers import ConvModule, build_activation_layer, build_conv_layer, build_norm_layer, build_upsample_layer
from mmdet.models import FCNMaskHead, ResNet, RetinaHead
from mmdet.registry import MODELS

NORMS = [dict(type='BN'), dict(type='GN', num_groups=2), dict(type='CBN', buffer_num=2), dict(type='SyncBN')]


class OffsetConv(nn.Conv2d):
    """A deformable convolution with the convolution that finds its offsets inside; it starts as a plain one."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        taps = self.kernel_size[0] * self.kernel_size[1]
        self.offset = nn.Conv2d(self.in_channels, 2 * taps, self.kernel_size, self.stride, self.padding, self.dilation)
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)

    def forward(self, x):
        return torchvision.ops.deform_conv2d(
            x, self.offset(x), self.weight, self.bias, self.stride, self.padding, self.dilation
        )


class Wrapped(nn.Module):
    """A convolution that is not an nn.Conv2d, with a weight and no bias; it initialises what it holds."""

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, bias=False):
        super().__init__()
        self.inner = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        nn.init.constant_(self.inner.weight, 0.25)

    @property
    def weight(self):
        return self.inner.weight

    def forward(self, x):
        return self.inner(x)


class Hidden(Wrapped):
    weight = None


class MyNorm(nn.Module):
    def __init__(self, channels, eps=1e-3):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x):
        return x * self.scale


class Squared(nn.Module):
    def __init__(self, inplace=False, power=2):
        super().__init__()
        self.inplace, self.power = inplace, power

    def forward(self, x):
        return x.relu() ** self.power


class Shuffle(nn.Module):
    def __init__(self, in_channels, out_channels, scale_factor, kernel_size=3):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels * scale_factor**2, kernel_size, padding=kernel_size // 2)
        self.shuffle = nn.PixelShuffle(scale_factor)

    def forward(self, x):
        return self.shuffle(self.conv(x))


@pytest.fixture(autouse=True)
def registered():
    """As a user's file does it."""
    own = (OffsetConv, Wrapped, Hidden, MyNorm, Squared, Shuffle)
    for layer in own:
        MODELS.register_module(module=layer)
    yield
    for layer in own:
        MODELS.module_dict.pop(layer.__name__)


@pytest.mark.parametrize('norm_cfg', NORMS, ids=lambda cfg: cfg['type'])
def test_a_resnet_of_ones_own_convolution_begins_as_a_plain_one_and_trains(norm_cfg):
    """Its inner convolution stays as it made it, and any norm follows."""
    options = dict(depth=18, base_channels=4, norm_cfg=norm_cfg, norm_eval=False, zero_init_residual=False)
    torch.manual_seed(0)
    own = ResNet(conv_cfg=dict(type='OffsetConv'), **options).double()
    assert isinstance(own.layer2[0].downsample[0], OffsetConv) and own.layer3[0].conv1.offset.weight.eq(0).all()
    assert own.layer1[0].conv1.weight.std().item() == pytest.approx((2 / (4 * 9)) ** 0.5, rel=0.2)  # Kaiming, fan out
    plain = ResNet(**options).double()
    state = {key: value for key, value in own.state_dict().items() if '.offset.' not in key}
    plain.load_state_dict(state)
    x = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    for ours, expected in zip(own(x), plain(x)):
        torch.testing.assert_close(ours, expected)
    optimizers = [torch.optim.SGD(model.parameters(), 0.01) for model in (own, plain)]
    for _ in range(2):  # the second pools with the first where the norm is CBN
        for model, optimizer in zip((own, plain), optimizers):
            optimizer.zero_grad()
            sum(y.square().mean() for y in model(x)).backward()
            optimizer.step()
    assert own.layer2[0].conv1.offset.weight.grad.abs().sum() > 0


@pytest.mark.parametrize('kind', ['Wrapped', 'OffsetConv'])
@pytest.mark.parametrize('norm_cfg', [None, *NORMS], ids=lambda cfg: cfg and cfg['type'])
def test_any_norm_follows_with_the_numbers_that_it_has_behind_a_plain_convolution(norm_cfg, kind):
    """CBN, too, whose closed forms do not hold here, while the weights change."""
    own = ConvModule(3, 4, 3, conv_cfg=dict(type=kind), norm_cfg=norm_cfg).double()
    assert own.conv.weight.eq(0.25).all() == (kind == 'Wrapped')  # not an nn.Conv2d: it keeps its first weights
    plain = ConvModule(3, 4, 3, norm_cfg=norm_cfg).double()
    plain.conv.weight.data.copy_(own.conv.weight.data)
    if norm_cfg is None and kind == 'Wrapped':
        plain.conv.bias.data.copy_(own.conv.inner.bias.data)
    for step in range(3):
        x = torch.rand(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        torch.testing.assert_close(own(x), plain(x))
        with torch.no_grad():
            change = 0.01 * torch.rand(own.conv.weight.shape, generator=torch.Generator().manual_seed(step))
            for weight in (own.conv.weight, plain.conv.weight):
                weight += change
    own.eval()
    plain.eval()
    torch.testing.assert_close(own(x), plain(x))


def test_cbn_behind_a_convolution_without_weight_says_so():
    block = ConvModule(3, 4, 3, conv_cfg=dict(type='Hidden'), norm_cfg=dict(type='CBN'))
    with pytest.raises(UserError, match='CBN behind Hidden: it has no tensor `weight`'):
        block(torch.rand(2, 3, 8, 8))
    block.eval()(torch.rand(2, 3, 8, 8))


def test_a_heads_first_weights_are_for_its_own_convolutions():
    head = RetinaHead(num_classes=2, in_channels=4, feat_channels=4, conv_cfg=dict(type='OffsetConv'))
    assert head.cls_convs[0].conv.offset.weight.eq(0).all() and 0.005 < head.cls_convs[0].conv.weight.std() < 0.02


def test_names_and_classes_of_all_four_kinds():
    cfgs = dict(conv_cfg=dict(type=Wrapped), norm_cfg=dict(type='MyNorm', eps=1), act_cfg=dict(type='Squared'))
    block = ConvModule(3, 4, 3, **cfgs)
    assert isinstance(block.conv, Wrapped) and isinstance(block.norm, MyNorm) and block.activate.inplace
    assert block(torch.ones(1, 3, 4, 4)).eq(6.75**2).all()
    assert build_conv_layer(dict(type='mmdet.Conv'), 2, 3, 1).kernel_size == (1, 1)
    assert build_activation_layer(dict(type='LeakyReLU', negative_slope=0.2)).inplace
    assert not build_activation_layer(dict(type='ReLU', inplace=False)).inplace
    assert build_activation_layer(dict(type='PReLU')).num_parameters == 1
    assert build_norm_layer(dict(type=nn.GroupNorm, num_groups=2), 4)[1].num_channels == 4
    assert build_norm_layer(dict(type='IN', affine=True), 4)[0] == 'in'


def test_mmcvs_names_work_once_it_is_imported():
    import mmcv.cnn  # noqa: F401

    assert build_activation_layer(dict(type='Swish')).__class__.__module__.startswith('mmcv.')
    assert type(build_conv_layer(dict(type='Conv2dAdaptivePadding'), 3, 4, 3)).__name__ == 'Conv2dAdaptivePadding'
    assert type(build_norm_layer(dict(type='LN'), 4)[1]) is nn.LayerNorm
    assert type(build_conv_layer(dict(type='Conv2d'), 3, 4, 3)) is nn.Conv2d


@pytest.mark.parametrize('upsample_cfg, learns', [
    (dict(type='deconv', scale_factor=2), True), (dict(type='nearest', scale_factor=2), False),
    (dict(type='bilinear'), False), (dict(type='Shuffle', kernel_size=1), True),
])  # fmt: skip
def test_upsampling_of_a_mask_head(upsample_cfg, learns):
    head = FCNMaskHead(1, in_channels=4, conv_out_channels=4, num_classes=3, upsample_cfg=upsample_cfg)
    x = torch.rand(2, 4, 7, 7)
    out = head(x)
    assert out.shape == (2, 3, 14, 14)
    features = head.convs[0](x)
    if upsample_cfg['type'] == 'nearest':
        assert torch.equal(out, head.conv_logits(features.repeat_interleave(2, 2).repeat_interleave(2, 3)))
    elif upsample_cfg['type'] == 'bilinear':
        assert torch.equal(out, head.conv_logits(nn.functional.interpolate(features, scale_factor=2, mode='bilinear')))
    else:
        assert torch.equal(out, head.conv_logits(head.upsample(features).relu()))
    assert any('upsample' in name for name, _ in head.named_parameters()) == learns


@pytest.mark.parametrize('build, message', [
    (lambda: build_conv_layer(dict(type='Conv2D'), 3, 4, 3), "unknown type 'Conv2D'. Did you mean Conv2d?"),
    (lambda: build_norm_layer(dict(type='MyNorm', epsilon=1), 4), "does not fit MyNorm: got an unexpected"),
    (lambda: build_norm_layer(dict(type='GN', num_groups='32'), 64), "'num_groups': '32'} does not fit GroupNorm"),
    (lambda: build_norm_layer(dict(type='MABN', buffer_size='16'), 4), "'buffer_size': '16'} does not fit"),
    (lambda: build_conv_layer(dict(deformable=True), 3, 4, 3), "must be a dict with a 'type', such as Conv2d"),
    (lambda: build_conv_layer(dict(type='ConvWS', gamma=1), 3, 4, 3), "does not fit ConvWS2d: got an unexpected"),
    (lambda: build_activation_layer(dict(type='Relu')), 'Did you mean ReLU?'),
    (lambda: build_activation_layer(dict(type='ReLU', slope=1)), 'does not fit ReLU'),
    (lambda: build_upsample_layer(dict(type='deconvolution'), 3, 4), 'Did you mean deconv?'),
    (lambda: build_upsample_layer(dict(type='nearest'), 3, 4), 'Nearest: interpolation keeps the 3 channels'),
])  # fmt: skip
def test_what_does_not_fit_is_said_in_one_line(build, message):
    with pytest.raises(UserError) as error:
        build()
    assert message in str(error.value) and '\n' not in str(error.value)


def test_an_error_inside_a_users_layer_is_its_own():
    class Broken(nn.Module):
        def __init__(self, num_features):
            super().__init__()
            raise ValueError('a bug of mine')

    with pytest.raises(ValueError, match='^a bug of mine$') as error:
        build_norm_layer(dict(type=Broken), 4)
    assert not isinstance(error.value, UserError)
