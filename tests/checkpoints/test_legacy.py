"""Checkpoints of mmdetection 0.6 against a slow implementation of that release's conventions."""

import re

import cv2
import numpy as np
import pytest
import torch
from legacy_reference import detect
from lively import spread_outputs
from mmengine.config import Config
from pycocotools import mask as coco_mask
from torch import nn

from mmdet.apis import inference_detector, init_detector
from mmdet.checkpoints import adapt_config, load_checkpoint
from mmdet.layers import CrossIterBatchNorm2d
from mmdet.registry import MODELS

SCALE = (200, 120)
NUM_PROPOSALS = 80  # of 2000, to save time
# Number of keys in a file of the release. Counted there: four; for the other four the same rules give it.
COUNTS = {
    'mask_rcnn_r50_fpn_cbn_buffer3_burnin8_1x': 414,
    'mask_rcnn_r50_fpn_gn_1x': 382,
    'faster_rcnn_r50_fpn_cbn_buffer3_burnin8_1x': 390,
    'faster_rcnn_r50_fpn_1x': 354,
    'mask_rcnn_r50_fpn_1x': 366,
    'mask_rcnn_r50_fpn_syncbn_1x': 430,
    'faster_rcnn_r50_fpn_syncbn_1x': 402,
    'faster_rcnn_r50_fpn_gn_1x': 366,
}
KEY = re.compile(
    r'backbone\.(conv1|bn1|layer\d\.\d+\.(conv\d|bn\d|downsample\.[01]))\.\w+'
    r'|neck\.(lateral_convs|fpn_convs)\.\d\.(conv|bn|gn)\.\w+'
    r'|rpn_head\.(rpn_conv|rpn_cls|rpn_reg)\.\w+'
    r'|bbox_head\.(shared_convs\.\d\.(conv|bn|gn)|shared_fcs\.0|fc_cls|fc_reg)\.\w+'
    r'|mask_head\.(convs\.\d\.(conv|bn|gn)|upsample|conv_logits)\.\w+'
)
META = dict(mmdet_version='0.6.0+0000000', mmcv_version='0.2.10', config='model = 1', epoch=12, iter=87960, time='')
SPREAD = {
    'rpn_head.rpn_cls': 2.0,
    'rpn_head.rpn_reg': 0.2,
    'roi_head.bbox_head.fc_cls': 2.5,
    'roi_head.bbox_head.fc_reg': 0.8,
    'roi_head.mask_head.conv_logits': 2.0,
}


def photo(real_data) -> np.ndarray:
    image = cv2.imread(str(sorted((real_data / 'photos').glob('*.jpg'))[0]))
    return cv2.resize(image, (231, 157), interpolation=cv2.INTER_AREA)


def legacy_state(model: nn.Module, name: str) -> dict:
    """The model's weights as the release wrote them; the background's rows, which nothing reads, are random."""
    state = {}
    for key, value in model.state_dict().items():
        if key.endswith('fc_cls.weight') or key.endswith('fc_cls.bias'):
            value = torch.cat([value[-1:], value[:-1]])
        elif 'fc_reg' in key or 'conv_logits' in key:
            rows = 4 if 'fc_reg' in key else 1
            value = torch.cat([torch.randn_like(value[:rows]), value])
        if key.endswith('num_batches_tracked') and not key.startswith('backbone.') and '_cbn_' in name:
            continue
        state[key.removeprefix('roi_head.')] = value
    return state


def legacy_file(name: str, image: np.ndarray, path) -> dict:
    """Write a file as the release did, of random weights under which `image` shows dozens of objects."""
    torch.manual_seed(0)
    cfg = Config.fromfile(f'configs/cbn/{name}.py', lazy_import=False).model
    cfg.backbone.init_cfg = None
    model = MODELS.build(cfg).eval()
    for module in model.modules():
        if isinstance(module, nn.GroupNorm | nn.modules.batchnorm._BatchNorm | CrossIterBatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
        if isinstance(module, CrossIterBatchNorm2d):
            # Some channels with little variance, where it matters on which side of the root eps stands.
            module.running_var.uniform_(0.1, 2.0)
            module.running_var[::16] = 1e-6
            module.weight.data[::16] *= 3e-3
            module.running_mean.normal_(std=0.1)
        elif isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            module.train()
    pixels = torch.from_numpy(cv2.resize(image, (177, 120))).permute(2, 0, 1)  # as SCALE does; padded to 192 x 128
    batch = model.data_preprocessor(dict(inputs=[pixels]))['inputs']
    with torch.no_grad(), spread_outputs(model, SPREAD):
        features = model.extract_feat(batch)
        logits, deltas, anchors = model.eval().rpn_head(features)
        boxes = model.rpn_head.predict(logits, deltas, anchors, [(120, 177)])[0][0][:100]
        rois = torch.nn.functional.pad(boxes, (1, 0))
        model.roi_head(features, [boxes])
        if model.roi_head.mask_head is not None:
            model.roi_head.mask_head(model.roi_head.mask_roi_extractor(features, rois))
    for module in model.modules():
        if isinstance(module, CrossIterBatchNorm2d):  # the release's scale stands before another denominator
            var = module.running_var
            module.weight.data *= (var.sqrt() + 1e-5) / (var + module.eps).sqrt()
    state = legacy_state(model, name)
    file = dict(meta=META, state_dict=state, optimizer=dict(state={}, param_groups=[dict(lr=0.0002, params=[1, 2])]))
    torch.save(file, path, _use_new_zipfile_serialization=False)
    return state


FAST = {'mask_rcnn_r50_fpn_cbn_buffer3_burnin8_1x', 'faster_rcnn_r50_fpn_1x'}


@pytest.mark.parametrize(
    'name', [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in COUNTS]
)
def test_same_detections_as_the_release(name, real_data, tmp_path):
    image, path = photo(real_data), tmp_path / 'epoch_12.pth'
    state = legacy_file(name, image, path)
    assert len(state) == COUNTS[name]
    assert all(KEY.fullmatch(key) for key in state)

    pipeline = Config.fromfile(f'configs/cbn/{name}.py', lazy_import=False).test_dataloader.dataset.pipeline
    resize = next(i for i, step in enumerate(pipeline) if step.type == 'Resize')
    options = {f'test_dataloader.dataset.pipeline.{resize}.scale': SCALE}
    model = init_detector(f'configs/cbn/{name}.py', str(path), device='cpu', cfg_options=options)
    assert model.rpn_head.test_cfg['max_per_img'] == 2000
    model.rpn_head.test_cfg['max_per_img'] = NUM_PROPOSALS
    # In double precision: random weights make single precision's rounding visible in the boxes.
    found = inference_detector(model.double(), image).pred_instances
    state = {key: value.double() if value.is_floating_point() else value for key, value in state.items()}
    expected = detect(state, image, SCALE, NUM_PROPOSALS)

    assert 20 < len(expected) == len(found)
    assert len({label for _, label, _, _ in expected}) >= 4
    left = set(range(len(found)))
    agreement = []
    for score, label, box, mask in expected:
        rows = [r for r in left if found.labels[r] == label]
        distance = [np.abs(found.bboxes[r].numpy() - box).max() for r in rows]
        assert rows and min(distance) < 3e-3  # the median is 6e-5: boxes are single precision
        row = rows[int(np.argmin(distance))]
        assert abs(float(found.scores[row]) - score) < 1e-4
        left.remove(row)
        if mask is not None:
            drawn = coco_mask.decode(found.masks[row])
            agreement.append((drawn & mask).sum() / max((drawn | mask).sum(), 1))
            assert drawn.shape == image.shape[:2]
    if 'mask' in name:
        # A corner a hair's breadth from a whole pixel may be cut to either side.
        assert np.mean(np.array(agreement) > 0.999) > 0.9
        assert np.mean([mask.mean() for *_, mask in expected]) > 0.001


@pytest.mark.parametrize('name', COUNTS)
def test_every_file_of_the_release_fits_its_config(name, tmp_path):
    cfg = Config.fromfile(f'configs/cbn/{name}.py', lazy_import=False)
    heads = [cfg.model.roi_head.bbox_head, *([cfg.model.roi_head.mask_head] if 'mask' in name else [])]
    cfg.model.backbone.update(init_cfg=None, base_channels=8)  # thin
    cfg.model.neck.update(in_channels=[32, 64, 128, 256], out_channels=32)
    cfg.model.rpn_head.update(in_channels=32, feat_channels=32)
    for head in heads:
        head.update(in_channels=32, conv_out_channels=32)
    heads[0].fc_out_channels = 16
    model = MODELS.build(cfg.model)
    state = legacy_state(model, name)
    assert len(state) == COUNTS[name] and all(KEY.fullmatch(key) for key in state)
    path = str(tmp_path / 'epoch_12.pth')
    torch.save(dict(meta=META, state_dict=state), path, _use_new_zipfile_serialization=False)
    changed = adapt_config(cfg, path)
    assert changed['model.rpn_head.anchor_generator.rounded'] and changed['test_evaluator.offset'] == 1
    assert changed['model.roi_head.bbox_head.bbox_coder.offset'] == 1  # a default of the head
    loaded = MODELS.build(cfg.model)
    load_checkpoint(loaded, path)
    for key, value in loaded.state_dict().items():  # CBN's scale makes up for the place of eps
        torch.testing.assert_close(value, model.state_dict()[key], rtol=1e-4, atol=0, msg=key)
