"""Backbones of a user's own, and the weights that training starts from."""

import pytest
import torch
import torchvision
from mmengine.model import BaseModel, BaseModule
from mmengine.registry import DefaultScope
from torch import nn
from torchvision.models.convnext import CNBlockConfig

from mmdet.config.errors import UserError
from mmdet.models import ResNet, init_weights
from mmdet.registry import MODELS


def convnext() -> nn.Module:
    """torchvision's, thin."""
    blocks = [CNBlockConfig(8, 16, 1), CNBlockConfig(16, 24, 1), CNBlockConfig(24, 32, 1), CNBlockConfig(32, None, 1)]
    return torchvision.models.ConvNeXt(blocks, num_classes=5)


class ThreeMaps(nn.Module):
    """What a user writes: no method but forward, no word about initialisation."""

    def __init__(self, frozen: bool = False):
        super().__init__()
        self.features = convnext().features
        if frozen:
            self.features[0].requires_grad_(False)

    def forward(self, x):
        maps = []
        for index, part in enumerate(self.features):
            x = part(x)
            if index % 2:
                maps.append(x)
        return tuple(maps)


class Own(ThreeMaps):
    """Initialises itself."""

    def init_weights(self):
        nn.init.ones_(self.features[0][0].weight)


class Based(BaseModule):
    """With mmengine's base class, and a part that has an `init_cfg` of its own."""

    def __init__(self, init_cfg=None):
        super().__init__(init_cfg)
        self.net = ThreeMaps()
        self.part = nn.Sequential(nn.Conv2d(1, 1, 1))
        self.part[0].init_cfg = dict(type='Constant', layer='Conv2d', val=7)

    def forward(self, x):
        return self.net(x)


class OwnNeck(BaseModule):
    def __init__(self, in_channels, out_channels):
        super().__init__(dict(type='Constant', layer='Conv2d', val=0.5))
        self.convs = nn.ModuleList(nn.Conv2d(c, out_channels, 1) for c in in_channels)

    def forward(self, maps):
        return tuple(conv(x) for conv, x in zip(self.convs, maps))


@pytest.fixture(autouse=True)
def registered():
    own = (ThreeMaps, Own, Based, OwnNeck)
    for layer in own:
        MODELS.register_module(module=layer)
    yield
    for layer in own:
        MODELS.module_dict.pop(layer.__name__)


@pytest.fixture
def detector(small_cfg):
    """Function `detector(backbone)`: Mask R-CNN on it, with CBN in neck and heads."""

    def build(backbone: dict, **neck):
        cfg = small_cfg('mask', dict(type='CBN', buffer_num=2))
        cfg.neck.update(in_channels=[8, 16, 24, 32], **neck)
        cfg.pop('backbone')
        return MODELS.build(dict(cfg, backbone=backbone))

    return build


def test_a_convnext_trains_and_predicts(detector, make_data):
    torch.manual_seed(0)
    model = detector(dict(type='ThreeMaps', frozen=True))
    model.init_weights()
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.01)
    for _ in range(2):
        losses = model(**model.data_preprocessor(make_data([2, 0]), True), mode='loss')
        loss = sum(value for key, value in losses.items() if 'loss' in key)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.isfinite() and model.backbone.features[7][0].block[0].weight.grad.abs().sum() > 0
    assert not model.backbone.features[0][0].weight.requires_grad
    (sample,) = model.eval().test_step(make_data([1]))
    assert len(sample.pred_instances.masks) == len(sample.pred_instances.scores)
    again = detector(dict(type='ThreeMaps'))
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval().test_step(make_data([1]))[0].pred_instances.scores, sample.pred_instances.scores)


@pytest.mark.parametrize('kind', ['own names', 'detector', 'prefix'])
def test_pretrained_weights_of_any_backbone(detector, tmp_path, kind):
    """From torchvision's file with its classifier, from a detector's, and from anywhere in a file."""
    torch.manual_seed(1)
    source = convnext().state_dict()
    names = {'own names': '{}', 'detector': 'backbone.{}', 'prefix': 'net.body.{}'}[kind]
    state = {names.format(key): value for key, value in source.items()}
    if kind == 'detector':
        state['bbox_head.fc_cls.weight'] = torch.zeros(3)
    torch.save(dict(state_dict=state), tmp_path / 'x.pth')
    file = dict(type='Pretrained', checkpoint=str(tmp_path / 'x.pth'))
    if kind == 'prefix':
        file['prefix'] = 'net.body.'
    constant = dict(type='Constant', layer='Conv2d', val=9)
    for init_cfg in (file, [constant, file], [file, constant]):
        model = detector(dict(type='ThreeMaps', init_cfg=init_cfg))
        model.init_weights()
        assert all(torch.equal(value, source[key]) for key, value in model.backbone.state_dict().items())


def test_weights_that_do_not_fit_are_refused(detector, tmp_path):
    path = str(tmp_path / 'x.pth')
    file = dict(type='Pretrained', checkpoint=path)
    state = convnext().state_dict()
    torch.save({key.replace('features', 'body'): value for key, value in state.items()}, path)
    with pytest.raises(UserError, match='x.pth'):
        detector(dict(type='ThreeMaps', init_cfg=file)).init_weights()
    torch.save({**state, 'features.0.0.weight': torch.zeros(9, 3, 4, 4)}, path)
    with pytest.raises(UserError, match=r'x.pth does not fit ThreeMaps: .* features.0.0.weight \(file \(9, 3, 4, 4\)'):
        detector(dict(type='ThreeMaps', init_cfg=file)).init_weights()
    torch.save(ResNet(34, base_channels=8).state_dict(), path)  # a deeper one has all that is needed, and more
    with pytest.raises(UserError, match='x.pth does not fit ResNet: .* not in the model: layer1.2'):
        init_weights(ResNet(18, base_channels=8, init_cfg=file))
    with pytest.raises(UserError, match='lacks its checkpoint'):
        init_weights(ResNet(18, base_channels=8, init_cfg=dict(type='Pretrained')))


def test_a_shorter_resnet_takes_the_stages_that_it_has(tmp_path):
    torch.manual_seed(0)
    whole = ResNet(18, base_channels=8)
    torch.save(whole.state_dict(), tmp_path / 'x.pth')
    short = ResNet(18, base_channels=8, num_stages=3, out_indices=(2,))
    short.init_cfg = [dict(type='Pretrained', checkpoint=str(tmp_path / 'x.pth'))]
    init_weights(short)
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in short.state_dict().items())


def test_every_part_is_initialised_once_and_as_it_says(detector):
    model = detector(dict(type='Own', init_cfg=dict(type='Constant', layer='Conv2d', val=2)))
    model.init_weights()
    assert model.backbone.features[0][0].weight.eq(1).all()  # its own method alone
    model = detector(dict(type='Based', init_cfg=dict(type='Constant', layer='Conv2d', val=3)))
    model.init_weights()
    assert model.backbone.net.features[0][0].weight.eq(3).all() and model.backbone.part[0].weight.eq(7).all()
    model = detector(dict(type='ThreeMaps'))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.init_weights()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    model = detector(dict(type='ThreeMaps', init_cfg=dict(type='Normal', layer='Conv2d', std=0.5)))
    model.neck = OwnNeck([8, 16, 24, 32], 64)
    model.roi_head.bbox_head.init_cfg = dict(type='Constant', layer='Linear', val=4)
    model.init_weights()
    assert model.neck.convs[2].weight.eq(0.5).all() and model.roi_head.bbox_head.fc_cls.weight.eq(4).all()


def test_a_network_of_another_library_keeps_its_weights(detector):
    """timm's and others have a method `init_weights` that draws anew, and nobody asked for it."""

    class Library(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 1)

        def init_weights(self):
            raise AssertionError

    class Wrapper(ThreeMaps):
        def __init__(self):
            super().__init__()
            self.library = Library()

    class Ready(BaseModule):
        def __init__(self):
            super().__init__(dict(type='Constant', layer='Conv2d', val=9))
            self.library, self.is_init = Library(), True

    model = detector(dict(type=Wrapper))
    model.backbone.ready = Ready()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.init_weights()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_parts_in_a_detector_of_mmengines_own_method(tmp_path):
    """A user's detector with mmengine's `init_weights`: its recursion finds our parts, and our reader their files."""

    class Detector(BaseModel):
        def __init__(self, backbone):
            super().__init__()
            self.backbone = MODELS.build(backbone)

        def forward(self, inputs, data_samples=None, mode='tensor'):
            return self.backbone(inputs)

    torch.manual_seed(0)
    whole = ResNet(18, base_channels=8)
    torch.save({f'backbone.{key}': value for key, value in whole.state_dict().items()}, tmp_path / 'x.pth')
    file = dict(type='Pretrained', checkpoint=str(tmp_path / 'x.pth'))
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = Detector(dict(type='ResNet', depth=18, base_channels=8, init_cfg=file))
        model.init_weights()
        assert torch.equal(model.backbone.conv1.weight, whole.conv1.weight)
        with pytest.raises(UserError, match='does not fit ResNet'):
            Detector(dict(type='ResNet', depth=18, base_channels=4, init_cfg=file)).init_weights()


@pytest.mark.parametrize('options, message', [
    (dict(num_stages=5), 'num_stages=5 must be 1 to 4'),
    (dict(num_stages=0), 'num_stages=0 must be 1 to 4'),
    (dict(strides=(1, 2)), 'num_stages=4 must be 1 to 2: there are 4 stages, 2 strides'),
    (dict(dilations=(1, 1, 1)), 'num_stages=4 must be 1 to 3'),
    (dict(out_indices=(1, -1)), r'out_indices=\(1, -1\) must be 0 to 3'),
    (dict(out_indices=(4,)), r'out_indices=\(4,\) must be 0 to 3'),
    (dict(out_indices=()), r'out_indices=\(\) must be'),
    (dict(frozen_stages=5), 'frozen_stages=5 must be -1 to 4'),
    (dict(frozen_stages=-2), 'frozen_stages=-2 must be -1 to 4'),
])  # fmt: skip
def test_resnet_refuses_stages_that_are_not_there(options, message):
    with pytest.raises(UserError, match=f'ResNet: {message}'):
        ResNet(18, **options)


def test_a_resnet_of_ones_own_settings():
    """mmdetection's way to another depth."""

    class Tiny(ResNet):
        arch_settings = {10: (ResNet.arch_settings[18][0], (1, 1, 1, 1))}

    assert len(Tiny(10, base_channels=8).layer4) == 1
    with pytest.raises(UserError, match=r'no depth 18; choose one of \[10\]'):
        Tiny(18)
