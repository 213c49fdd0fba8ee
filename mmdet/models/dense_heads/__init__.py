"""Heads that look at every position of the feature maps."""

from mmdet.models.dense_heads.retina_head import RetinaHead
from mmdet.models.dense_heads.rpn_head import RPNHead
from mmdet.models.dense_heads.ssd_head import SSDHead

__all__ = ['RPNHead', 'RetinaHead', 'SSDHead']
