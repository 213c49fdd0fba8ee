"""Whole detectors."""

from mmdet.models.detectors.cascade_rcnn import CascadeRCNN
from mmdet.models.detectors.fast_rcnn import FastRCNN
from mmdet.models.detectors.faster_rcnn import FasterRCNN
from mmdet.models.detectors.mask_rcnn import MaskRCNN
from mmdet.models.detectors.retinanet import RetinaNet
from mmdet.models.detectors.rpn import RPN
from mmdet.models.detectors.single_stage import SingleStageDetector
from mmdet.models.detectors.two_stage import TwoStageDetector

__all__ = [
    'CascadeRCNN', 'FastRCNN', 'FasterRCNN', 'MaskRCNN', 'RPN', 'RetinaNet', 'SingleStageDetector', 'TwoStageDetector',
]  # fmt: skip
