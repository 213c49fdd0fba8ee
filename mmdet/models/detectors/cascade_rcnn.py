"""Cascade R-CNN."""

from mmdet.models.detectors.two_stage import TwoStageDetector
from mmdet.registry import MODELS


@MODELS.register_module()
class CascadeRCNN(TwoStageDetector):
    """Faster or Mask R-CNN whose RoI head is a `CascadeRoIHead` (Cai and Vasconcelos 2018)."""
