"""A small Mask R-CNN and made-up images with ground truth."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.structures import InstanceData

from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.masks import BitmapMasks

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'


@pytest.fixture
def small_cfg():
    """Function `cfg(kind, norm_cfg)` of a ResNet-18 detector with 64 channels and 3 classes."""

    def make(kind: str = 'mask', norm_cfg: dict | None = None) -> dict:
        cfg = Config.fromfile(CONFIGS / f'_base_/models/{kind}_rcnn_r50_fpn.py', lazy_import=False).model
        cfg.backbone.update(depth=18, init_cfg=None)
        cfg.neck.update(in_channels=[64, 128, 256, 512], out_channels=64, norm_cfg=norm_cfg)
        cfg.rpn_head.update(in_channels=64, feat_channels=64)
        cfg.roi_head.bbox_roi_extractor.out_channels = 64
        cfg.roi_head.bbox_head.update(
            type='Shared4Conv1FCBBoxHead',
            in_channels=64,
            conv_out_channels=64,
            fc_out_channels=128,
            num_classes=3,
            norm_cfg=norm_cfg,
        )
        if kind == 'mask':
            cfg.roi_head.mask_roi_extractor.out_channels = 64
            cfg.roi_head.mask_head.update(in_channels=64, conv_out_channels=64, num_classes=3, norm_cfg=norm_cfg)
        cfg.train_cfg.rcnn.sampler.num = 64
        return cfg

    return make


@pytest.fixture
def small_model(small_cfg):
    def make(kind: str = 'mask', norm_cfg: dict | None = None):
        torch.manual_seed(0)
        return MODELS.build(small_cfg(kind, norm_cfg)).train()

    return make


@pytest.fixture
def make_data():
    """Function `data(counts)`: a batch with that many objects in each image."""

    def make(counts: list[int], height: int = 96, width: int = 128, ignored: int = 0, seed: int = 0) -> dict:
        generator = torch.Generator().manual_seed(seed)
        samples, images = [], []
        for index, count in enumerate(counts):
            boxes = torch.rand(count + ignored, 4, generator=generator) * 50
            boxes[:, 2:] += boxes[:, :2] + 20
            boxes[:, 0::2].clamp_(max=width)
            boxes[:, 1::2].clamp_(max=height)
            masks = np.zeros((count, height, width), np.uint8)
            for mask, (x1, y1, x2, y2) in zip(masks, boxes[:count].int().tolist()):
                mask[y1:y2, x1:x2] = 1
            size = (height, width)
            sample = DetDataSample(
                metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0), img_id=index)
            )
            labels = torch.randint(0, 3, (count + ignored,), generator=generator)
            sample.gt_instances = InstanceData(
                bboxes=boxes[:count], labels=labels[:count], masks=BitmapMasks(masks, height, width)
            )
            sample.ignored_instances = InstanceData(bboxes=boxes[count:], labels=labels[count:])
            samples.append(sample)
            images.append(torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8))
        return dict(inputs=images, data_samples=samples)

    return make
