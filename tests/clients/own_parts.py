"""A backbone, a neck, a loss and a box head of one's own, trained."""

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.model import BaseModule
from mmengine.runner import Runner
from torch import nn

from mmdet.models.losses import weighted_loss
from mmdet.models.roi_heads import Shared2FCBBoxHead
from mmdet.registry import MODELS
from mmdet.utils import ConfigType, OptMultiConfig, register_all_modules


@MODELS.register_module()
class FourConvs(BaseModule):
    """The first kernel of each stage has its stride."""

    def __init__(self, channels: int = 8, init_cfg: OptMultiConfig = None):
        super().__init__(init_cfg)
        widths = [3, *(channels * 2**i for i in range(4))]
        self.stages = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=4 if a == 3 else 2, padding=1) for a, b in zip(widths, widths[1:])
        )

    def forward(self, x):
        maps = []
        for stage in self.stages:
            x = F.relu(stage(x))
            maps.append(x)
        return tuple(maps)


@MODELS.register_module()
class OneLevelNeck(BaseModule):
    """All levels from the finest map, by pooling."""

    def __init__(self, in_channels: list[int], out_channels: int, num_outs: int, norm_cfg: ConfigType | None = None):
        super().__init__()
        self.lateral = nn.Conv2d(in_channels[0], out_channels, 1)
        self.num_outs = num_outs

    def forward(self, inputs):
        maps = [self.lateral(inputs[0])]
        while len(maps) < self.num_outs:
            maps.append(F.max_pool2d(maps[-1], 2, ceil_mode=True))
        return tuple(maps)


@weighted_loss
def log_cosh(pred, target):
    return torch.log(torch.cosh(pred - target))


@MODELS.register_module()
class LogCoshLoss(nn.Module):
    def __init__(self, loss_weight: float = 1.0):
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, pred, target, weight=None, avg_factor=None, reduction_override=None):
        return self.loss_weight * log_cosh(pred, target, weight, avg_factor=avg_factor)


@MODELS.register_module()
class CountedHead(Shared2FCBBoxHead):
    calls = 0

    def forward(self, x):
        CountedHead.calls += 1
        return super().forward(x)


if __name__ == '__main__':
    register_all_modules()
    cfg = Config.fromfile('config.py')
    cfg.work_dir = 'work'
    cfg.model.backbone = dict(_delete_=True, type='FourConvs', channels=8)
    cfg.model.neck = dict(type='OneLevelNeck', in_channels=[8, 16, 32, 64], out_channels=32, num_outs=5)
    cfg.model.backbone.pop('_delete_')
    cfg.model.roi_head.bbox_head.type = 'CountedHead'
    cfg.model.roi_head.bbox_head.loss_bbox = dict(type='LogCoshLoss', loss_weight=0.5)
    Runner.from_cfg(cfg).train()
    print('head called:', CountedHead.calls > 0)
