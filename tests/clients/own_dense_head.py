"""A dense head on no base class of this package, with mmdetection's arguments."""

from mmengine.config import Config
from mmengine.model import BaseModule
from torch import nn

from mmdet.registry import MODELS


@MODELS.register_module()
class Points(BaseModule):
    def __init__(self, num_classes, in_channels, train_cfg=None, test_cfg=None):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, num_classes, 1)

    def forward(self, x):
        return ([self.conv(level) for level in x],)

    def loss(self, x, batch_data_samples):
        return dict(loss=sum(level.mean() for level in self(x)[0]))

    def predict(self, x, batch_data_samples, rescale=False):
        return []


model = Config.fromfile('config.py').model
head = dict(type='Points', num_classes=4, in_channels=model.neck.out_channels)
MODELS.build(dict(type='SingleStageDetector', backbone=model.backbone, neck=model.neck, bbox_head=head))
