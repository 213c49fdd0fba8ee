"""Necks: feature maps to a pyramid."""

from mmdet.models.necks.bfp import BFP
from mmdet.models.necks.fpn import FPN
from mmdet.models.necks.ssd_neck import L2Norm, SSDNeck

__all__ = ['BFP', 'FPN', 'L2Norm', 'SSDNeck']
