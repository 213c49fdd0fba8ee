"""A detector and a data set that train in milliseconds, to exercise the engine alone."""

import os
import random
from pathlib import Path

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.structures import InstanceData
from torch import nn
from torch.utils.data import Dataset

from mmdet.registry import DATASETS, METRICS, MODELS
from mmdet.structures import DetDataSample


@DATASETS.register_module(force=True)
class ToyDataset(Dataset):
    """`length` noisy vectors; the noise (the augmentation) comes from all three generators."""

    metainfo = dict(classes=('circle', 'square'))

    def __init__(self, length: int = 8, bad_item: int | None = None):
        self.length, self.bad_item = length, bad_item

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        noise = torch.tensor([random.random(), np.random.rand(), float(torch.rand(()))])
        x = torch.full((3,), float(index)) / self.length + noise
        if index == self.bad_item:
            x = x * float('nan')
        sample = DetDataSample(metainfo=dict(img_id=100 + index, img_path=f'{index}.jpg', ori_shape=(8, 8)))
        return dict(inputs=x, data_samples=sample)


@MODELS.register_module(force=True)
class ToyHead(nn.Module):
    def __init__(self, num_classes: int = 2):
        super().__init__()
        self.num_classes = num_classes
        self.norm = nn.BatchNorm1d(4)
        self.fc = nn.Linear(4, num_classes)


@MODELS.register_module(force=True)
class ToyDetector(BaseModel):
    """Linear, BatchNorm, dropout (the model's own randomness), linear."""

    def __init__(self, width: int = 4, num_classes: int = 2, head: dict | None = None, data_preprocessor=None):
        super().__init__()
        self.stem = nn.Linear(3, width)
        self.head = MODELS.build(head or dict(type='ToyHead', num_classes=num_classes))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = torch.stack(list(inputs)) if isinstance(inputs, (list, tuple)) else inputs
        x = torch.dropout(self.stem(x), 0.3, self.training)
        out = self.head.fc(self.head.norm(x) if len(x) > 1 or not self.training else x)
        if mode == 'loss':
            return dict(loss_toy=(out ** 2).mean(), loss_zero=out.sum() * 0)
        for sample, scores in zip(data_samples, out):
            sample.pred_instances = InstanceData(
                bboxes=torch.tensor([[0.0, 0.0, 4.0, 4.0]]), scores=scores[:1].sigmoid(),
                labels=torch.zeros(1, dtype=torch.long))
        return data_samples


@METRICS.register_module(force=True)
class ToyMetric(BaseMetric):
    """'mAP': the mean score; the image ids it saw, for tests of their order."""

    def process(self, data_batch, data_samples):
        self.results += [(s['img_id'], float(s['pred_instances']['scores'][0])) for s in data_samples]

    def compute_metrics(self, results):
        return dict(mAP=sum(score for _, score in results) / len(results))


CONFIG = """
custom_imports = dict(imports=['toy_task'], allow_failed_imports=False)
default_scope = 'mmdet'
model = dict(type='ToyDetector')
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='ToyDataset'))
val_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='ToyDataset', length=5))
test_dataloader = val_dataloader
val_evaluator = dict(type='ToyMetric')
test_evaluator = val_evaluator
train_cfg = dict(by_epoch=True, max_epochs=2, val_interval=1)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.5, by_epoch=False, begin=0, end=3),
    dict(type='MultiStepLR', by_epoch=True, milestones=[1, 3], gamma=0.5),
]
default_hooks = dict(logger=dict(type='LoggerHook', interval=1),
                     checkpoint=dict(type='CheckpointHook', interval=1, save_best='auto'))
visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])
"""

ENVIRONMENT = {
    **os.environ,
    'PYTHONPATH': os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent)]),
    'OMP_NUM_THREADS': '1',
    'CUDA_VISIBLE_DEVICES': '',
}


def write_config(folder: Path, name: str = 'toy.py', text: str = '', base: str = CONFIG) -> Path:
    """A config file of the toy task, with lines added at its end."""
    path = folder / name
    path.write_text(base + text)
    return path


def weights(runner) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in runner.model.state_dict().items()}
