"""Mask R-CNN."""

from mmdet.config.errors import UserError
from mmdet.models.detectors.two_stage import TwoStageDetector
from mmdet.registry import MODELS


@MODELS.register_module()
class MaskRCNN(TwoStageDetector):
    """Faster R-CNN whose RoI head has a mask head (He et al. 2017).

    Raises:
        UserError: it has none.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        if self.roi_head.mask_head is None:
            raise UserError('MaskRCNN: roi_head has no mask_head; add one, or use FasterRCNN')
