"""Anchors, assigners, samplers and box coders."""

from mmdet.config.absent import absent
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
from mmdet.models.task_modules.ssd_anchor_generator import SSDAnchorGenerator

__all__ = [
    'AnchorGenerator', 'CombinedSampler', 'DeltaXYWHBBoxCoder', 'InstanceBalancedPosSampler', 'IoUBalancedNegSampler',
    'MaxIoUAssigner', 'OHEMSampler', 'PseudoSampler', 'RandomSampler',
    'SSDAnchorGenerator',
]  # fmt: skip

_ASSIGNER = 'an assigner is any class with assign(boxes, gt_boxes, ignored_boxes), see task_modules/protocols.py'
_SAMPLER = 'a sampler is any class with sample(matched, iou), see task_modules/protocols.py'
__getattr__ = absent(
    __name__, AssignResult=_ASSIGNER, BaseAssigner=_ASSIGNER, BaseSampler=_SAMPLER, SamplingResult=_SAMPLER,
    BaseBBoxCoder='subclass DeltaXYWHBBoxCoder, and override encode and decode',
    BboxOverlaps2D='use mmdet.structures.boxes.box_iou',
)  # fmt: skip
