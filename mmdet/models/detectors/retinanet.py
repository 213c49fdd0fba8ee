"""RetinaNet."""

from mmdet.models.detectors.single_stage import SingleStageDetector
from mmdet.registry import MODELS


@MODELS.register_module()
class RetinaNet(SingleStageDetector):
    """Dense detector with focal loss, a `RetinaHead` (Lin et al. 2017)."""
