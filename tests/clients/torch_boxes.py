"""A transform that leaves boxes as a tensor, trained on."""

import torch
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.runner import Runner

from mmdet.registry import TRANSFORMS


@TRANSFORMS.register_module()
class Jitter(BaseTransform):
    def transform(self, results):
        boxes = torch.as_tensor(results['gt_bboxes'])
        results['gt_bboxes'] = boxes + torch.randn_like(boxes)
        return results


cfg = Config.fromfile('config.py')
cfg.work_dir = 'work'
cfg.train_dataloader.dataset.pipeline.insert(2, dict(type='Jitter'))
Runner.from_cfg(cfg).train()
