"""Faster R-CNN."""

from mmdet.models.detectors.two_stage import TwoStageDetector
from mmdet.registry import MODELS


@MODELS.register_module()
class FasterRCNN(TwoStageDetector):
    """Region proposals and a `StandardRoIHead` (Ren et al. 2015)."""
