"""Anchors, assigners, samplers and box coders."""

from mmdet.models.task_modules.anchors import AnchorGenerator
from mmdet.models.task_modules.assigners import MaxIoUAssigner, PseudoSampler, RandomSampler
from mmdet.models.task_modules.box_coder import DeltaXYWHBBoxCoder
from mmdet.models.task_modules.samplers import (
    CombinedSampler,
    InstanceBalancedPosSampler,
    IoUBalancedNegSampler,
    OHEMSampler,
)

__all__ = [
    'AnchorGenerator',
    'CombinedSampler',
    'DeltaXYWHBBoxCoder',
    'InstanceBalancedPosSampler',
    'IoUBalancedNegSampler',
    'MaxIoUAssigner',
    'OHEMSampler',
    'PseudoSampler',
    'RandomSampler',
]
