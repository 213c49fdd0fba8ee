"""The region proposal network alone."""

import torch
from mmengine.config import ConfigDict

from mmdet.models import contracts
from mmdet.models.detections import Detections
from mmdet.models.detectors.single_stage import SingleStageDetector
from mmdet.models.settings import check_keys
from mmdet.registry import MODELS
from mmdet.structures.boxes import unscale_boxes


@MODELS.register_module()
class RPN(SingleStageDetector):
    """The first stage of Faster R-CNN; its detections are proposals with label 0.

    Args:
        train_cfg: dict(rpn=dict(assigner, sampler)).
        test_cfg: dict(rpn=dict(nms_pre, nms, max_per_img, min_bbox_size)).

    Raises:
        UserError: keys of train_cfg or test_cfg that nothing reads.
    """

    head_name = 'rpn_head'
    settings_key = 'rpn'
    head_predicts = staticmethod(contracts.proposals)

    def __init__(
        self,
        backbone: dict,
        neck: dict | list[dict] | None,
        rpn_head: dict,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        **kwargs,
    ):
        check_keys('train_cfg', train_cfg, ('rpn', 'rpn_proposal'))
        check_keys('test_cfg', test_cfg, ('rpn',))
        super().__init__(backbone, neck, rpn_head, (train_cfg or {}).get('rpn'), (test_cfg or {}).get('rpn'), **kwargs)
        self.train_cfg, self.test_cfg = ConfigDict(rpn=self.train_cfg), ConfigDict(rpn=self.test_cfg)

    def detections(self, outputs: tuple, metas: list[dict]) -> list[Detections]:
        proposals = self.head.predict(*outputs, [meta['img_shape'][:2] for meta in metas])
        return [
            Detections(unscale_boxes(boxes, meta['scale_factor']), scores, torch.zeros_like(scores, dtype=torch.int64))
            for (boxes, scores), meta in zip(proposals, metas)
        ]
