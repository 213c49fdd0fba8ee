"""Whole detectors."""

from mmdet.models.detectors.single_stage import RPN, RetinaNet
from mmdet.models.detectors.two_stage import CascadeRCNN, FasterRCNN, FastRCNN, MaskRCNN

__all__ = ['CascadeRCNN', 'FastRCNN', 'FasterRCNN', 'MaskRCNN', 'RPN', 'RetinaNet']
