"""The COCO metric."""

from mmdet.evaluation.coco import CocoMetric

__all__ = ['CocoMetric']
