"""Necks: feature maps to a pyramid."""

from mmdet.models.necks.bfp import BFP
from mmdet.models.necks.fpn import FPN

__all__ = ['BFP', 'FPN']
