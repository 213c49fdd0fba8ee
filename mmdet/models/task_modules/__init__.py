"""Anchors, assigners, samplers and box coders."""

from mmdet.models.task_modules.anchor_generator import AnchorGenerator
from mmdet.models.task_modules.delta_xywh_bbox_coder import DeltaXYWHBBoxCoder
from mmdet.models.task_modules.max_iou_assigner import MaxIoUAssigner
from mmdet.models.task_modules.samplers import (
    CombinedSampler,
    InstanceBalancedPosSampler,
    IoUBalancedNegSampler,
    OHEMSampler,
    PseudoSampler,
    RandomSampler,
)

__all__ = [
    'AnchorGenerator', 'CombinedSampler', 'DeltaXYWHBBoxCoder', 'InstanceBalancedPosSampler', 'IoUBalancedNegSampler',
    'MaxIoUAssigner', 'OHEMSampler', 'PseudoSampler', 'RandomSampler',
]  # fmt: skip
