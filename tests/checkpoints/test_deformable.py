"""Names of deformable and C4 models: mmdetection 3.3's are ours, those of earlier versions are converted."""

import known_keys as known
import pytest
import torch
from factories import CONFIGS, build, small_cfg
from mmengine.config import Config

from mmdet.checkpoints import backbone_weights, convert, load_checkpoint, weights_for_part
from mmdet.checkpoints.reading import Checkpoint
from mmdet.models import ResNet
from mmdet.registry import MODELS

DEFORMED = [f'backbone.layer{s}.{b}.conv2' for s, count in ((2, 4), (3, 6), (4, 3)) for b in range(count)]
OFFSETS = [key for conv in DEFORMED for key in known.layer(f'{conv}.conv_offset')]
POOLED = [f'roi_head.bbox_roi_extractor.roi_layers.{level}' for level in range(4)]
OFFSET_FC = [key for pool in POOLED for i in (0, 2, 4) for key in known.layer(f'{pool}.offset_fc.{i}')]
MASK_FC = [key for pool in POOLED for i in (0, 2) for key in known.layer(f'{pool}.mask_fc.{i}')]
FASTER = known.mmdet_backbone() + known.mmdet_fpn() + known.mmdet_rpn() + known.mmdet_box_head()
C4 = [
    *(key for key in known.mmdet_backbone() if 'layer4' not in key),
    *(key.replace('backbone.', 'roi_head.shared_head.') for key in known.mmdet_backbone() if 'layer4' in key),
    *known.mmdet_rpn(), *known.mmdet_box_head(fcs=0),
]  # fmt: skip
KEYS = {
    'offical_cfgs/dcn/faster_rcnn_dconv_c3-c5_r50_fpn_1x': FASTER + OFFSETS,
    'offical_cfgs/dcn/faster_rcnn_mdconv_c3-c5_r50_fpn_1x': FASTER + OFFSETS,
    'offical_cfgs/dcn/faster_rcnn_dpool_r50_fpn_1x': FASTER + OFFSET_FC,
    'offical_cfgs/dcn/faster_rcnn_mdpool_r50_fpn_1x': FASTER + OFFSET_FC + MASK_FC,
    'faster_rcnn/faster_rcnn_r50_caffe_c4_1x': C4,
    'mask_rcnn/mask_rcnn_r50_caffe_c4_1x': C4
    + known.layer('roi_head.mask_head.upsample') + known.layer('roi_head.mask_head.conv_logits'),
}  # fmt: skip


@pytest.mark.parametrize('name', KEYS, ids=lambda name: name.rpartition('/')[2])
def test_keys_of_mmdetection_3(name):
    cfg = Config.fromfile(CONFIGS / f'{name}.py', lazy_import=False).model
    with torch.device('meta'):
        model = MODELS.build(cfg)
    assert sorted(model.state_dict()) == sorted(KEYS[name])


def detector(kind: str = 'DCN', pool: str | None = None, two_outputs: bool = False):
    """A Faster R-CNN of few channels, every parameter random."""
    cfg = small_cfg('faster_rcnn', 50, 8, channels=16, hidden=8)
    cfg.backbone.update(dcn=dict(type=kind), stage_with_dcn=(False, True, False, True))
    cfg.rpn_head.loss_cls.use_sigmoid = not two_outputs
    if pool:
        cfg.roi_head.bbox_roi_extractor.roi_layer = dict(
            type=pool, output_size=7, output_channels=16, deform_fc_channels=8
        )
    model = build(cfg)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def as_first_named(state: dict) -> dict:
    """With the offsets beside the convolution, as mmdetection 0.x to early 2.x kept them."""
    return {key.replace('.conv2.conv_offset.', '.conv2_offset.'): value for key, value in state.items()}


def as_in_the_release(model) -> dict:
    """Names and orders of mmdetection 0.6: no roi_head, the background first."""
    state = as_first_named(model.state_dict())
    state = {key.removeprefix('roi_head.'): value for key, value in state.items()}
    for part in ('weight', 'bias'):
        key = f'bbox_head.fc_cls.{part}'
        state[key] = state[key].roll(1, 0)
        key = f'bbox_head.fc_reg.{part}'
        state[key] = torch.cat([torch.zeros_like(state[key][:4]), state[key]])
        key = f'rpn_head.rpn_cls.{part}'
        if model.rpn_head.softmax:
            state[key] = torch.stack([state[key][1::2], state[key][::2]], 1).flatten(0, 1)
    return state


@pytest.mark.parametrize('kind, pool, two', [
    ('DCN', None, False), ('DCNv2', 'DeformRoIPoolPack', True), ('DCN', 'ModulatedDeformRoIPoolPack', False),
])  # fmt: skip
def test_a_file_of_the_release_fills_the_model(tmp_path, kind, pool, two):
    model = detector(kind, pool, two)
    meta = dict(mmdet_version='0.6.0', mmcv_version='0.2.8', epoch=12)
    torch.save(dict(meta=meta, state_dict=as_in_the_release(model)), tmp_path / 'old.pth')
    other = detector(kind, pool, two)
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    load_checkpoint(other, str(tmp_path / 'old.pth'))
    for key, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key


def test_a_file_of_mmdetection_2_fills_the_model_and_its_backbone():
    model = detector()
    checkpoint = Checkpoint(dict(state_dict=as_first_named(model.state_dict()), meta=dict(mmdet_version='2.1.0')), '')
    converted = convert(checkpoint)
    assert converted.state_dict.keys() == model.state_dict().keys() and len(converted.changed) == 2 * 7
    own = {key.removeprefix('backbone.') for key in model.state_dict() if key.startswith('backbone.')}
    assert backbone_weights(checkpoint).keys() == own
    part = ResNet(50, base_channels=8, dcn=dict(type='DCN'), stage_with_dcn=(False, True, False, True))
    found = weights_for_part(part, checkpoint)
    assert torch.equal(found['layer2.1.conv2.conv_offset.bias'], model.backbone.layer2[1].conv2.conv_offset.bias)


def test_a_single_stage_model_of_the_release():
    cfg = small_cfg('retinanet', 50, 8, channels=16)
    cfg.backbone.update(dcn=dict(type='DCN'), stage_with_dcn=(False, False, False, True))
    keys = build(cfg).state_dict()
    meta = dict(mmdet_version='0.6.0', mmcv_version='0.2.8')
    assert convert(dict(meta=meta, state_dict=as_first_named(keys))).state_dict.keys() == keys.keys()
