"""What is taken as it is, what is recognised as another project's, and by what."""

import pytest
import torch
from factories import build, small_cfg
from mmengine.config import Config
from mmengine.model import BaseModel
from torch import nn

from mmdet.checkpoints import (
    Checkpoint,
    adapt_config,
    convert,
    load_checkpoint,
    load_pretrained,
    needs_legacy_options,
    to_torchvision,
    weights_for_part,
)
from mmdet.checkpoints import load as door
from mmdet.checkpoints.plain import marked
from mmdet.config.errors import UserError
from mmdet.models.initialize import Pretrained


@pytest.fixture
def said(monkeypatch) -> list[str]:
    lines = []
    monkeypatch.setattr(door, 'say', lines.append)
    return lines


class Parts(BaseModel):
    """A detector of linear layers under any names, with weights of their own."""

    def __init__(self, *names: str, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for name in names:
            *path, last = name.split('.')
            module: nn.Module = self
            for part in path:
                if part not in module._modules:
                    module.add_module(part, nn.Module())
                module = module._modules[part]
            shape = torch.randint(2, 6, (2,), generator=torch.Generator().manual_seed(len(name)))
            module.register_parameter(last, nn.Parameter(torch.randn(*shape, generator=generator)))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return inputs


# Names of one's own that look like another project's: one of its prefixes, or even several of its keys.
LIKE = {
    'a ConvNeXt': ('backbone.stem.0.weight', 'backbone.stages.0.weight', 'bbox_head.fc_cls.weight'),
    'a RegNet': ('backbone.stem.conv1.weight', 'backbone.res2.0.weight', 'backbone.res4.0.weight', 'neck.weight'),
    'a body': ('backbone.body.conv1.weight', 'backbone.fpn.weight', 'rpn.head.conv.weight', 'roi_heads.weight'),
    'a bottom-up path': ('backbone.bottom_up.weight', 'backbone.fpn_lateral2.weight', 'roi_heads.box_head.weight'),
    'a set prediction': ('backbone.weight', 'bbox_head.fc_cls.weight', 'bbox_head.fc_reg.weight'),
    'a mask head': ('backbone.weight', 'mask_head.conv_logits.weight', 'mask_head.0.weight'),
    'an RPN in the head': ('backbone.weight', 'bbox_head.rpn_conv.weight', 'bbox_head.rpn_cls.weight',
                           'bbox_head.rpn_reg.weight'),
    'a classifier': ('conv1.weight', 'layer1.0.conv1.weight', 'fc.weight'),
    'blobs': ('conv1_w', 'res2_0_branch2a_w'),
    'nothing that is known': ('encoder.weight', 'decoder.weight'),
}  # fmt: skip


@pytest.mark.parametrize('mark', [False, True])
@pytest.mark.parametrize('name', LIKE)
def test_a_models_own_names_are_taken_as_they_are(name, mark, tmp_path, said):
    saved, other = Parts(*LIKE[name]), Parts(*LIKE[name], seed=1)
    meta = dict(epoch=1, mmengine_version='0.10.7')
    torch.save(dict(meta=marked(meta) if mark else meta, state_dict=saved.state_dict()), tmp_path / 'x.pth')
    checkpoint = load_checkpoint(other, str(tmp_path / 'x.pth'))
    assert all(torch.equal(value, saved.state_dict()[key]) for key, value in other.state_dict().items())
    assert not needs_legacy_options(checkpoint) and said == []


@pytest.mark.parametrize('name', LIKE)
def test_what_was_saved_here_is_never_converted(name):
    """Even for another model, whose keys differ."""
    weights = Parts(*LIKE[name]).state_dict()
    content = dict(meta=marked(dict(mmdet_version='0.6.0', mmcv_version='0.2')), state_dict=weights)
    converted = convert(content)
    assert converted.state_dict.keys() == weights.keys() and not converted.changed and not converted.reordered
    assert not needs_legacy_options(Checkpoint(content, 'x.pth'))
    with pytest.raises(UserError, match='x.pth does not fit Parts'):
        load_checkpoint(Parts('another.weight'), Checkpoint(content, 'x.pth'))


def test_a_set_prediction_head_is_not_legacy():
    """DETR's names: `fc_cls` with a row for no object, `fc_reg` with four."""
    cfg = Config.fromfile('configs/faster_rcnn/faster_rcnn_r50_fpn_1x.py', lazy_import=False)
    before = cfg.to_dict()
    state = {'backbone.conv1.weight': torch.randn(4, 3, 7, 7), 'neck.lateral_convs.0.conv.weight': torch.randn(8, 4)}
    for layer, rows in (('fc_cls', 4), ('fc_reg', 4)):
        state.update({f'bbox_head.{layer}.weight': torch.randn(rows, 8), f'bbox_head.{layer}.bias': torch.randn(rows)})
    assert adapt_config(cfg, Checkpoint(dict(state_dict=state), 'x.pth')) == {} and cfg.to_dict() == before
    converted = convert(dict(state_dict=state))
    assert not converted.changed and not converted.reordered
    assert all(torch.equal(converted.state_dict[key], value) for key, value in state.items())


def thin(name: str) -> nn.Module:
    return build(small_cfg(name, depth=50, width=8, channels=16, hidden=8))


def background_first(state: dict) -> dict:
    """As mmdetection 0.x wrote it: no `roi_head.`, class 0 the background."""
    old = {}
    for key, value in state.items():
        if 'fc_cls' in key:
            value = value.roll(1, 0)
        elif 'conv_logits' in key or ('fc_reg' in key and len(value) > 4):
            value = torch.cat([torch.zeros_like(value[: 1 if 'conv_logits' in key else 4]), value])
        old[key.removeprefix('roi_head.')] = value
    return old


@pytest.mark.parametrize('name', ['fast_rcnn', 'faster_rcnn', 'mask_rcnn', 'cascade_rcnn', 'cascade_mask_rcnn'])
def test_a_legacy_file_without_meta_is_known_by_several_keys_and_their_shapes(name, said):
    model = thin(name)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    old = Checkpoint(background_first(state), 'x.pth')
    assert needs_legacy_options(old)
    load_checkpoint(model, old)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert len(said) == 1 and 'x.pth: mmdetection 0.x / 1.x, recognised by bbox_head.' in said[0]
    assert 'fc_cls.weight' in said[0] and 'and their shapes' in said[0] and 'keys renamed' in said[0]
    head = 'bbox_head.0' if 'cascade' in name else 'bbox_head'
    for key, value in (
        (f'{head}.shared_fcs.0.weight', None), (f'{head}.fc_reg.weight', None), (f'{head}.fc_cls.weight', None),
        (f'{head}.fc_reg.weight', torch.zeros(12, 8)), ('roi_head.weight', torch.zeros(1)),
    ):  # fmt: skip
        other = {**old, key: value}
        assert not needs_legacy_options(Checkpoint({k: v for k, v in other.items() if v is not None}, 'x.pth')), key


def test_a_version_in_meta_decides():
    state = background_first(thin('faster_rcnn').state_dict())
    for meta, legacy in (
        (dict(mmdet_version='1.2.0', mmcv_version='0.5'), True),
        (dict(mmdet_version='2.3.0', mmcv_version='1.0'), False),
        (dict(mmdet_version='3.3.0', mmengine_version='0.10'), False),
        (dict(conventions='mmdet1'), True),
        (None, True),
    ):
        assert needs_legacy_options(Checkpoint(dict(meta=meta, state_dict=state), 'x.pth')) == legacy, meta


def test_a_conversion_says_what_it_recognised(said):
    model = thin('faster_rcnn')
    theirs = convert(dict(state_dict=model.state_dict()))
    assert theirs.evidence == 'backbone.conv1.weight' and not theirs.changed
    load_checkpoint(model, Checkpoint(to_torchvision(model.state_dict()), 'tv.pth'))
    (line,) = said
    assert line.startswith('tv.pth: torchvision Faster R-CNN, recognised by backbone.body.conv1.weight with ')
    assert 'keys renamed, ' in line and 'output layers reordered' in line


def test_a_part_finds_its_weights_under_its_own_names_first(tmp_path):
    part = Parts('stem.conv1.weight', 'res4.0.weight')
    own = {key: torch.ones_like(value) for key, value in part.state_dict().items()}
    files = {
        'the part': own,
        'of a detector': {f'backbone.{key}': value for key, value in own.items()} | {'neck.weight': torch.zeros(1)},
        'with a classifier': {**own, 'fc.weight': torch.zeros(1)},
    }
    for name, state in files.items():
        for content in (state, dict(state_dict=state), dict(meta=marked({}), state_dict=state)):
            torch.save(content, tmp_path / 'x.pth')
            found = weights_for_part(part, load_pretrained(str(tmp_path / 'x.pth')))
            assert found.keys() == own.keys() and all(torch.equal(found[key], own[key]) for key in own), name
    with pytest.raises(UserError, match='x.pth does not fit Parts'):
        weights_for_part(part, Checkpoint(dict(own), 'x.pth'), prefix='head.')


def test_a_whole_detector_starts_from_an_address(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    saved, other = (Parts('backbone.weight', 'head.weight', seed=seed) for seed in (0, 1))
    (tmp_path / 'hub' / 'checkpoints').mkdir(parents=True)
    torch.save(dict(state_dict=saved.state_dict()), tmp_path / 'hub' / 'checkpoints' / 'x-12345678.pth')
    Pretrained('https://example.invalid/x-12345678.pth')(other)
    assert all(torch.equal(value, saved.state_dict()[key]) for key, value in other.state_dict().items())
