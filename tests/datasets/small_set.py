"""A small COCO data set on disk, and a detector that knows it, to run the tools on."""

import json
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.model import BaseModel
from mmengine.structures import InstanceData
from pycocotools import mask as coco_mask
from torch import nn

from mmdet.registry import MODELS

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ('cat', 'dog')
BOXES = ([8, 8, 30, 24], [40, 36, 48, 40])  # x, y, width, height of the cat and the dog
CONFIG = f"""
_base_ = [{str(ROOT / 'configs/_base_/datasets/shapes.py')!r}, {str(ROOT / 'configs/_base_/default_runtime.py')!r}]
model = dict(type='TinyDetector', data_preprocessor=dict(
    type='DetDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True))
dataset = dict(
    data_root='set', ann_file='instances.json', data_prefix=dict(img='images/'), metainfo=dict(classes={CLASSES}))
train_dataloader = dict(num_workers=0, batch_size=1, dataset=dataset)
val_dataloader = dict(num_workers=0, dataset=dataset)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='set/instances.json', metric=['bbox'])
test_evaluator = val_evaluator
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01))
"""


@MODELS.register_module(force=True)
class TinyDetector(BaseModel):
    """Finds the cat and the dog of `content` where they are, on every image."""

    def __init__(self, data_preprocessor: dict):
        super().__init__(data_preprocessor)
        self.conv = nn.Conv2d(3, 1, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        if mode == 'loss':
            return dict(loss=self.conv(inputs).square().mean())
        boxes = torch.tensor(BOXES, dtype=torch.float32)
        boxes[:, 2:] += boxes[:, :2]
        for sample in data_samples:
            bitmaps = torch.zeros(2, *sample.ori_shape, dtype=torch.uint8)
            for bitmap, (x1, y1, x2, y2) in zip(bitmaps, boxes.int().tolist()):
                bitmap[y1:y2, x1:x2] = 1
            masks = [coco_mask.encode(np.asfortranarray(bitmap.numpy())) for bitmap in bitmaps]
            sample.pred_instances = InstanceData(
                bboxes=boxes, labels=torch.tensor([0, 1]), scores=torch.tensor([0.9, 0.8]), masks=masks)
        return data_samples


def content(images: int = 3) -> dict:
    """Images of 96 x 80 pixels with a cat and a dog each."""
    return dict(
        images=[dict(id=i, file_name=f'{i}.png', width=96, height=80) for i in range(1, images + 1)],
        categories=[dict(id=k, name=name) for k, name in enumerate(CLASSES, 1)],
        annotations=[
            dict(id=10 * i + k, image_id=i, category_id=k, bbox=list(box), area=box[2] * box[3], iscrowd=0,
                 segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]])
            for i in range(1, images + 1)
            for k, box in enumerate(BOXES, 1)
            for x, y, w, h in [box]
        ],
    )  # fmt: skip


def write_set(content: dict | str, folder: Path = Path('set')) -> None:
    """The annotation file, and an image of noise wherever it names a file that is not there."""
    (folder / 'images').mkdir(parents=True, exist_ok=True)
    (folder / 'instances.json').write_text(content if isinstance(content, str) else json.dumps(content))
    for entry in content['images'] if isinstance(content, dict) else ():
        path = folder / 'images' / str(entry['file_name'])
        if '://' not in str(path) and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            size = int(entry['height']), int(entry['width']), 3
            image = np.random.default_rng(0).integers(0, 255, size, dtype=np.uint8)
            path.write_bytes(cv2.imencode('.png', image)[1].tobytes())
