"""A box head whose deltas are (R, 4 C), as mmdetection has them, trained."""

from mmengine.config import Config
from mmengine.runner import Runner

from mmdet.models.roi_heads.bbox_heads.convfc_bbox_head import Shared2FCBBoxHead
from mmdet.registry import MODELS


@MODELS.register_module()
class FlatHead(Shared2FCBBoxHead):
    def forward(self, x):
        cls_score, bbox_pred = super().forward(x)
        return cls_score, bbox_pred.reshape(len(bbox_pred), -1)


cfg = Config.fromfile('config.py')
cfg.work_dir = 'work'
cfg.model.roi_head.bbox_head.type = 'FlatHead'
Runner.from_cfg(cfg).train()
