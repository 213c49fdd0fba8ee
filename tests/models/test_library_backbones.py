"""Backbones of timm and torchvision, and necks that find their channels themselves."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
import torchvision
from factories import small_cfg
from torch import nn

from mmdet.config.errors import UserError
from mmdet.config.load import load_config
from mmdet.layers import CrossIterBatchNorm2d, pack
from mmdet.models import TimmBackbone, TorchvisionBackbone, init_weights
from mmdet.models.detectors.parts import channels_of
from mmdet.registry import MODELS

timm = pytest.importorskip('timm', reason='pip install timm')

MODELS_OF = [
    ('TimmBackbone', 'tf_efficientnet_lite0', (24, 40, 112, 320), (4, 8, 16, 32)),
    ('TimmBackbone', 'convnext_atto', (40, 80, 160, 320), (4, 8, 16, 32)),
    ('TorchvisionBackbone', 'mobilenet_v3_small', (16, 24, 48, 576), (4, 8, 16, 32)),
    ('TorchvisionBackbone', 'shufflenet_v2_x0_5', (24, 48, 96, 1024), (4, 8, 16, 32)),
]


@pytest.fixture(scope='module', params=MODELS_OF, ids=lambda row: '-'.join(row[:2]))
def backbone(request):
    kind, name, channels, strides = request.param
    torch.manual_seed(0)
    return MODELS.build(dict(type=kind, model_name=name)), channels, strides


@torch.no_grad()
def test_maps_and_channels(backbone):
    net, channels, strides = backbone
    maps = net.eval()(torch.randn(1, 3, 32, 64))
    assert [m.shape for m in maps] == [(1, c, 32 // s, 64 // s) for c, s in zip(channels, strides)]
    assert channels_of(net) == list(channels)
    measured, net.out_channels = net.out_channels, None
    assert channels_of(net) == list(channels)
    net.out_channels = measured


@pytest.mark.parametrize('name', ['tf_efficientnet_lite0', 'convnext_atto'])
def test_weights_of_timms_whole_model(name, tmp_path):
    torch.manual_seed(0)
    whole = timm.create_model(name, num_classes=10).eval()
    torch.save(whole.state_dict(), tmp_path / 'timm.pth')
    net = TimmBackbone(name, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'timm.pth')))
    init_weights(net)
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        last = net.eval()(x)[-1]
        stages = dict(whole.named_modules())[net.network.feature_info.info[-1]['module']]
        found = []
        stages.register_forward_hook(lambda module, inputs, output: found.append(output))
        whole(x)
    assert torch.equal(last, found[0])
    torch.save(dict(state_dict={f'backbone.{k}': v for k, v in net.state_dict().items()}), tmp_path / 'detector.pth')
    again = TimmBackbone(name, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'detector.pth')))
    again.init_weights()  # called by hand
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in net.state_dict().items())


def test_weights_of_torchvisions_whole_model(tmp_path):
    whole = torchvision.models.mobilenet_v3_small().eval()
    torch.save(whole.state_dict(), tmp_path / 'x.pth')
    init = dict(type='Pretrained', checkpoint=str(tmp_path / 'x.pth'))
    net = TorchvisionBackbone('mobilenet_v3_small', init_cfg=init)
    init_weights(net)
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(net.eval()(x)[-1], whole.features(x))
    torch.save(torchvision.models.squeezenet1_1().state_dict(), tmp_path / 'x.pth')
    with pytest.raises(UserError, match='not a checkpoint of a known detector'):
        init_weights(net)


@pytest.mark.parametrize(
    'kind, name, frozen, left',
    [
        ('TimmBackbone', 'convnext_atto', 1, 'stages_1'),
        ('TimmBackbone', 'tf_efficientnet_lite0', 3, 'blocks.3'),
        ('TorchvisionBackbone', 'mobilenet_v3_small', 2, 'features.2'),
    ],
)
def test_frozen_stages(kind, name, frozen, left):
    """`left` is the first part that is trained; what lies before it does not change in a training step."""
    net = MODELS.build(dict(type=kind, model_name=name, frozen_stages=frozen, norm_eval=False)).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    sum(m.square().mean() for m in net(torch.randn(2, 3, 32, 32))).backward()
    optimizer.step()
    keys = [key.partition('.')[2] for key, _ in net.named_parameters()]
    first = next(index for index, key in enumerate(keys) if key.startswith(left))
    assert [p.requires_grad for p in net.parameters()] == [index >= first for index in range(len(keys))]
    changed = {key.partition('.')[2] for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
    assert changed and not changed & set(keys[:first])
    statistics = [key for key in changed if key.endswith('running_mean')]
    assert bool(statistics) == (name != 'convnext_atto')
    assert all(any(key.rpartition('.')[0] == k.rpartition('.')[0] for k in keys[first:]) for key in statistics)


def test_padding_that_follows_the_size_of_the_image_is_known():
    assert not TimmBackbone('tf_efficientnet_lite0').fixed_padding and TimmBackbone('efficientnet_lite0').fixed_padding


def test_norms():
    net = TimmBackbone('resnet18').train()
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and not any(m.training for m in norms) and all(m.weight.requires_grad for m in norms)
    fixed = TimmBackbone('resnet18', norm_cfg=dict(type='BN', requires_grad=False), norm_eval=False).train()
    norms = [m for m in fixed.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(m.training and not m.weight.requires_grad for m in norms)


@pytest.mark.parametrize(
    'kind, name', [('TimmBackbone', 'mobilenetv3_small_050'), ('TorchvisionBackbone', 'shufflenet_v2_x0_5')]
)
def test_cbn_in_the_place_of_its_norms(kind, name):
    torch.manual_seed(0)
    plain = MODELS.build(dict(type=kind, model_name=name))
    norm = dict(type='CBN', buffer_num=2, burnin_iters=1)
    cbn = MODELS.build(dict(type=kind, model_name=name, norm_cfg=norm, norm_eval=False))
    cbn.load_state_dict(plain.state_dict())
    layers = [m for m in cbn.modules() if isinstance(m, CrossIterBatchNorm2d)]
    assert len(layers) == sum(isinstance(m, nn.BatchNorm2d) for m in plain.modules())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for ours, theirs in zip(cbn.eval()(x), plain.eval()(x)):
            torch.testing.assert_close(ours, theirs)
    cbn.train()
    for _ in range(2):
        sum(m.mean() for m in cbn(torch.randn(2, 3, 32, 32))).backward()
    assert all(layer.steps == 2 and layer.history is not None for layer in layers)


def test_a_detector_finds_its_channels():
    for backbone in (
        dict(type='TimmBackbone', model_name='resnet18', out_indices=(2, 3, 4)),
        dict(type='TorchvisionBackbone', model_name='resnet18', out_indices=(2, 3, 4)),
        dict(type='ResNet', depth=18, out_indices=(1, 2, 3)),
    ):
        cfg = small_cfg('retinanet')
        cfg.backbone = backbone
        cfg.neck.update(in_channels='auto', start_level=0)
        cfg.neck = [cfg.neck, dict(type='BFP', in_channels=32, num_levels=5)]
        model = MODELS.build(cfg)
        assert [block.conv.in_channels for block in model.neck[0].lateral_convs] == [128, 256, 512]
        assert len(model(torch.zeros(1, 3, 64, 64))) == 5


@pytest.mark.parametrize('kind, count', [('faster', 4 + 4 + 4), ('mask', 4 + 4 + 4 + 2)])
def test_the_recipes_on_efficientnet(kind, count):
    """CBN in the FPN, the box head's four convolutions and the mask head's two; the backbone keeps its BatchNorm."""
    cfg = load_config(f'configs/efficientnet/{kind}_rcnn_efficientnet_lite0_fpn_cbn.py').model
    cfg.backbone.init_cfg = None
    with torch.device('meta'):
        model = MODELS.build(cfg)
    assert sum(isinstance(m, CrossIterBatchNorm2d) for m in model.modules()) == count
    assert not any(isinstance(m, CrossIterBatchNorm2d) for m in model.backbone.modules())
    assert [block.conv.in_channels for block in model.neck.lateral_convs] == [24, 40, 112, 320]
    assert model.roi_head.bbox_head.num_classes == 80


class Stubborn(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return (self.conv(x) * float(x.sum()),)


def test_a_backbone_that_does_not_say():
    with pytest.raises(UserError, match='Stubborn has no attribute out_channels.*cannot run without memory'):
        channels_of(Stubborn())


@pytest.mark.parametrize(
    'kind, options, expected',
    [
        ('TimmBackbone', dict(model_name='resnet81'), "timm has no model 'resnet81'"),
        ('TimmBackbone', dict(model_name='resnet18', out_indices=(7,)), r'does not give the maps out_indices=\(7,\)'),
        ('TimmBackbone', dict(model_name='resnet18', pretrained=True), 'pretrained=True would download'),
        ('TimmBackbone', dict(model_name='resnet18', frozen_stages=6), 'frozen_stages=6 must be -1 to 5'),
        ('TimmBackbone', dict(model_name='resnet18', norm_cfg=dict(type='GN')), "its norms stay as they are, dict"),
        ('TimmBackbone', dict(model_name='convnext_atto', norm_cfg=dict(type='CBN')), 'no BatchNorm2d of'),
        ('TimmBackbone', dict(model_name='resnet18', norm_cfg=dict(type='CBN', x=1)), "type CBN: .*'x'"),
        ('TorchvisionBackbone', dict(model_name='resnet81'), "no model 'resnet81'. Did you mean resnet18"),
        ('TorchvisionBackbone', dict(model_name='vit_b_16'), 'vit_b_16 has 0 maps'),
        ('TorchvisionBackbone', dict(model_name='resnet18', out_indices=(5,)), 'resnet18 has 5 maps, of strides'),
    ],
)
def test_what_cannot_be_had_is_said(kind, options, expected):
    with pytest.raises(UserError, match=expected):
        MODELS.build(dict(type=kind, **options))


def test_without_timm():
    code = """
import sys
sys.modules['timm'] = None
from mmdet.cli import config
from mmdet.config.errors import run_main
from mmdet.registry import MODELS
run_main(lambda: MODELS.build(dict(type='TimmBackbone', model_name='resnet18')))
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == 'error: TimmBackbone: TimmBackbone needs timm: pip install timm\n'


def near(maps, expected):
    for got, wanted in zip(maps, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())


@pytest.mark.parametrize(
    'kind, name', [('TimmBackbone', 'tf_efficientnet_lite0'), ('TorchvisionBackbone', 'resnet18')]
)
@torch.no_grad()
def test_norms_are_folded_in_inference(kind, name, monkeypatch):
    torch.manual_seed(0)
    net = MODELS.build(dict(type=kind, model_name=name)).eval()
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.normal_(norm.running_mean)
    x, packed, batch_norm, computed = torch.randn(2, 3, 64, 96), pack(copy.deepcopy(net)), F.batch_norm, []
    monkeypatch.setattr(F, 'batch_norm', lambda *args: computed.append(1) or batch_norm(*args))
    expected = net(x)
    # timm's convolutions whose padding follows the size of the image are not packed
    left = sum(type(m).__name__ == 'Conv2dSame' for m in net.modules())
    for model in packed, copy.deepcopy(packed), pickle.loads(pickle.dumps(packed)):
        computed.clear()
        near(model(x), expected)
        assert len(computed) == left
    first = next(m for m in packed.modules() if isinstance(m, nn.BatchNorm2d) and hasattr(m, 'folded'))
    seen = []
    handle = first.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    near(packed(x), net(x))
    handle.remove()
    assert len(seen) == 1
    for model in packed, net:
        next(model.parameters()).mul_(0.5)
    near(packed(x), net(x))
    with torch.enable_grad():
        near(packed.train()(x), net.train()(x))


@torch.no_grad()
def test_maps_of_depthwise_convolutions_are_inferred_in_float32():
    torch.manual_seed(0)
    x = torch.randn(1, 3, 64, 64)
    for name, exact in ('mobilenetv3_small_050', True), ('resnet18', False):
        net = TimmBackbone(name).eval()
        with torch.autocast('cpu', torch.bfloat16):
            maps = net(x)
            with torch.enable_grad():
                assert net(x)[-1].dtype == torch.bfloat16
        assert all((a.dtype == torch.float32) == exact for a in maps)
        assert not exact or all(map(torch.equal, maps, net(x)))


def test_a_copy_is_in_the_same_mode():
    for kind, name in ('TorchvisionBackbone', 'resnet18'), ('TimmBackbone', 'resnet18'):
        for mode in True, False:
            net = MODELS.build(dict(type=kind, model_name=name)).train(mode)
            copied = copy.deepcopy(net)
            assert [m.training for m in copied.modules()] == [m.training for m in net.modules()]
            with torch.no_grad():
                x = torch.randn(1, 3, 64, 64)
                assert all(map(torch.equal, copied(x), net(x)))
