"""Losses, registered by name."""

from mmdet.layers.losses.basic import (
    BalancedL1Loss,
    CrossEntropyLoss,
    L1Loss,
    SmoothL1Loss,
    check_reduction,
    weighted_mean,
)
from mmdet.layers.losses.focal import FocalLoss
from mmdet.layers.losses.iou import BoundedIoULoss, CIoULoss, DIoULoss, GIoULoss, IoULoss

__all__ = [
    'BalancedL1Loss', 'BoundedIoULoss', 'CIoULoss', 'CrossEntropyLoss', 'DIoULoss', 'FocalLoss', 'GIoULoss', 'IoULoss',
    'L1Loss', 'SmoothL1Loss', 'check_reduction', 'weighted_mean',
]
