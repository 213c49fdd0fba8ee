"""Cascade R-CNN.

P proposals of an image.
"""

from torch import Tensor

from mmdet.models.detections import Detections
from mmdet.models.detectors.two_stage import TwoStageDetector
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample


@MODELS.register_module()
class CascadeRCNN(TwoStageDetector):
    """Faster or Mask R-CNN whose RoI head is a `CascadeRoIHead` (Cai and Vasconcelos 2018).

    With ``test_cfg.rcnn.keep_all_stages=True`` the samples also have what each stage finds by itself, without masks:
    `pred_instances_s0` and so on.
    """

    def detect(
        self,
        features: tuple[Tensor, ...],
        proposals: list[Tensor],
        data_samples: list[DetDataSample],
        metas: list[dict],
    ) -> list[Detections]:
        *stages, detections = self.roi_head.predict_stages(features, proposals, metas)
        for stage, found in enumerate(stages):
            for sample, of_image in zip(data_samples, found):
                sample.set_data({f'pred_instances_s{stage}': of_image.to_instances()})
        return detections
