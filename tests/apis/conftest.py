"""A thin Mask R-CNN that finds something untrained, and one image in all the forms in which it can be given."""

from pathlib import Path

import factories
import numpy as np
import pytest
import torch
from mmengine.config import Config

from mmdet.apis import init_detector
from mmdet.config.load import load_config
from mmdet.visualization.visualizer import write_image


def thin_config(classes: tuple[str, ...] = ('cat', 'dog', 'bird')) -> Config:
    """configs/mask_rcnn with few channels and small images."""
    cfg = load_config(factories.CONFIGS / 'mask_rcnn' / 'mask_rcnn_r50_fpn_1x.py')
    cfg.model = factories.small_cfg('mask_rcnn', width=16, num_classes=len(classes))
    cfg.model.test_cfg.rpn.update(max_per_img=20)
    cfg.model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=4)
    for phase in ('train', 'val', 'test'):
        dataset = cfg[f'{phase}_dataloader'].dataset
        dataset.metainfo = dict(classes=classes)
        next(step for step in dataset.pipeline if step['type'] == 'Resize').scale = (128, 96)
    return cfg


@pytest.fixture
def config() -> Config:
    return thin_config()


@pytest.fixture(scope='session')
def thin():
    """Not to be changed."""
    torch.manual_seed(0)
    return init_detector(thin_config(), device='cpu')


@pytest.fixture(scope='session')
def photo(tmp_path_factory) -> Path:
    """80 x 120 pixels, without loss."""
    path = tmp_path_factory.mktemp('photo') / 'photo.png'
    write_image(path, np.random.default_rng(0).integers(0, 255, (80, 120, 3), np.uint8))
    return path
