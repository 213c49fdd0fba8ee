"""Detectors without a second stage: RetinaNet, and the region proposal network alone.

N images, H and W of the padded batch.
"""

import torch
from mmengine.model import BaseModel
from mmengine.structures import InstanceData
from torch import Tensor

from mmdet.models.data_preprocessor import to_target
from mmdet.models.options import build_neck, check_keys, init_detector_weights
from mmdet.models.roi_heads.standard_roi_head import Detections
from mmdet.models.settings import check_heads
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample, Target
from mmdet.structures.boxes import unscale_boxes


class _OneStage(BaseModel):
    """Backbone, neck and one head; what the head is given and gives is the subclass's business."""

    parts: dict[str, str]  # the head, and the part of train_cfg and test_cfg that is its own

    @classmethod
    def check_config(cls, cfg: dict, path: str, whole: dict, training: bool) -> None:
        check_heads(cfg, path, training, cls.parts)

    @classmethod
    def predicts(cls, cfg: dict) -> set[str]:
        """The fields of `pred_instances`, by the detector's config."""
        return {'bboxes', 'scores', 'labels'}

    def __init__(
        self,
        backbone: dict,
        neck: dict | list[dict] | None,
        head: dict,
        data_preprocessor: dict | None,
        init_cfg: dict | None,
        head_name: str,
    ):
        super().__init__(data_preprocessor=MODELS.build(data_preprocessor or dict(type='DetDataPreprocessor')))
        self.backbone = MODELS.build(backbone)
        self.neck = build_neck(neck)
        self.add_module(head_name, MODELS.build(head))
        self.init_cfg = init_cfg

    def init_weights(self) -> None:
        """Load pretrained weights; the random initialisation is done when the layers are made."""
        init_detector_weights(self)

    def forward(self, inputs: Tensor, data_samples: list[DetDataSample] | None = None, mode: str = 'tensor'):
        """Batch (N, 3, H, W) -> losses ('loss'), the samples with `pred_instances` ('predict'), maps ('tensor')."""
        features = self.backbone(inputs)
        if self.neck is not None:
            features = self.neck(features)
        if mode == 'loss':
            return self.loss(features, [to_target(sample, inputs.device) for sample in data_samples])
        if mode == 'predict':
            for sample, found in zip(data_samples, self.predict(features, [s.metainfo for s in data_samples])):
                sample.pred_instances = InstanceData(bboxes=found.boxes, scores=found.scores, labels=found.labels)
            return data_samples
        return features


@MODELS.register_module()
class RetinaNet(_OneStage):
    """Dense detector with focal loss (Lin et al. 2017).

    Args:
        train_cfg, test_cfg: those of the head.
    """

    parts = dict(bbox_head='')

    def __init__(
        self,
        backbone: dict,
        neck: dict | list[dict],
        bbox_head: dict,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ):
        head = dict(bbox_head, train_cfg=train_cfg, test_cfg=test_cfg)
        super().__init__(backbone, neck, head, data_preprocessor, init_cfg, 'bbox_head')

    def loss(self, features: tuple[Tensor, ...], targets: list[Target]) -> dict[str, Tensor]:
        return self.bbox_head.loss(*self.bbox_head(features), targets)

    @torch.no_grad()
    def predict(self, features: tuple[Tensor, ...], metas: list[dict]) -> list[Detections]:
        return self.bbox_head.predict(*self.bbox_head(features), metas)


@MODELS.register_module()
class RPN(_OneStage):
    """The region proposal network alone; its detections are proposals with label 0.

    Args:
        train_cfg: dict(rpn=dict(assigner, sampler)).
        test_cfg: dict(rpn=dict(nms_pre, nms, max_per_img, min_bbox_size)).
    """

    parts = dict(rpn_head='rpn')

    def __init__(
        self,
        backbone: dict,
        neck: dict | list[dict] | None,
        rpn_head: dict,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ):
        check_keys('train_cfg', train_cfg, ('rpn', 'rpn_proposal'))
        check_keys('test_cfg', test_cfg, ('rpn',))
        head = dict(rpn_head, train_cfg=(train_cfg or {}).get('rpn'), test_cfg=(test_cfg or {}).get('rpn'))
        super().__init__(backbone, neck, head, data_preprocessor, init_cfg, 'rpn_head')

    def loss(self, features: tuple[Tensor, ...], targets: list[Target]) -> dict[str, Tensor]:
        return self.rpn_head.loss(*self.rpn_head(features), targets)

    @torch.no_grad()
    def predict(self, features: tuple[Tensor, ...], metas: list[dict]) -> list[Detections]:
        proposals = self.rpn_head.predict(*self.rpn_head(features), [meta['img_shape'][:2] for meta in metas])
        return [
            Detections(unscale_boxes(boxes, meta['scale_factor']), scores, torch.zeros_like(scores, dtype=torch.int64))
            for (boxes, scores), meta in zip(proposals, metas)
        ]
