"""The COCO metric."""

from .coco_metric import CocoMetric

__all__ = ['CocoMetric']
