"""Faster R-CNN and its relatives.

N images, H and W of the padded batch.
"""

import torch
from mmengine.model import BaseModel
from mmengine.structures import InstanceData
from torch import Tensor

from mmdet.config.errors import UserError
from mmdet.models.data_preprocessor import to_target
from mmdet.models.dense_heads.common import TEST_KEYS
from mmdet.models.options import build_neck, check_keys, init_detector_weights
from mmdet.models.settings import check_heads, check_settings
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample, Target


@MODELS.register_module()
class FasterRCNN(BaseModel):
    """Backbone, neck, region proposals, RoI head (Ren et al. 2015; with a mask head, He et al. 2017).

    Args:
        train_cfg: dict(rpn=dict(assigner, sampler), rpn_proposal=dict(nms_pre, ...), rcnn=dict(assigner, ...)).
        test_cfg: dict(rpn=dict(nms_pre, ...), rcnn=dict(score_thr, ...)).
        init_cfg: ``dict(type='Pretrained', checkpoint=...)``, weights of a whole detector, or mmengine's initialisers.
    """

    @classmethod
    def check_config(cls, cfg: dict, path: str, whole: dict, training: bool) -> None:
        check_heads(cfg, path, training, dict(rpn_head='rpn', roi_head='rcnn'))
        proposals = (cfg.get('train_cfg') or {}).get('rpn_proposal')
        if training and proposals:
            check_settings(proposals, ('nms', 'max_per_img'), f'{path}.train_cfg.rpn_proposal', f'{path}.rpn_head')

    @classmethod
    def predicts(cls, cfg: dict) -> set[str]:
        """The fields of `pred_instances`, by the detector's config."""
        return {'bboxes', 'scores', 'labels', *(['masks'] if (cfg.get('roi_head') or {}).get('mask_head') else [])}

    def __init__(
        self,
        backbone: dict,
        rpn_head: dict | None,
        roi_head: dict,
        neck: dict | list[dict] | None = None,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ):
        super().__init__(data_preprocessor=MODELS.build(data_preprocessor or dict(type='DetDataPreprocessor')))
        train_cfg, test_cfg = train_cfg or {}, test_cfg or {}
        check_keys('train_cfg', train_cfg, ('rpn', 'rpn_proposal', 'rcnn'))
        check_keys('train_cfg.rpn_proposal', train_cfg.get('rpn_proposal'), TEST_KEYS)
        check_keys('test_cfg', test_cfg, ('rpn', 'rcnn'))
        self.init_cfg = init_cfg
        self.backbone = MODELS.build(backbone)
        self.neck = build_neck(neck)
        if rpn_head is not None:
            rpn_head = dict(rpn_head, train_cfg=train_cfg.get('rpn'), test_cfg=test_cfg.get('rpn'))
            self.rpn_head = MODELS.build(rpn_head)
        self.roi_head = MODELS.build(dict(roi_head, train_cfg=train_cfg.get('rcnn'), test_cfg=test_cfg.get('rcnn')))
        self.proposal_cfg = train_cfg.get('rpn_proposal', test_cfg.get('rpn'))

    def init_weights(self) -> None:
        """Load pretrained weights; the random initialisation is done when the layers are made."""
        init_detector_weights(self)

    def forward(self, inputs: Tensor, data_samples: list[DetDataSample] | None = None, mode: str = 'tensor'):
        """Batch (N, 3, H, W) -> losses ('loss'), the samples with `pred_instances` ('predict'), maps ('tensor')."""
        features = self.extract(inputs)
        if mode == 'loss':
            return self.loss(features, data_samples)
        if mode == 'predict':
            return self.predict(features, data_samples)
        return features

    def extract(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """The maps of all levels, fine to coarse."""
        features = self.backbone(inputs)
        return features if self.neck is None else self.neck(features)

    def loss(self, features: tuple[Tensor, ...], data_samples: list[DetDataSample]) -> dict[str, Tensor]:
        targets = [to_target(sample, features[0].device) for sample in data_samples]
        proposals, losses = self.training_proposals(features, data_samples, targets)
        losses.update(self.roi_head.loss(features, proposals, targets))
        return losses

    def training_proposals(
        self, features: tuple[Tensor, ...], data_samples: list[DetDataSample], targets: list[Target]
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Proposals [(P, 4)] to train the RoI head on, and the losses of what made them."""
        logits, deltas, anchors = self.rpn_head(features)
        losses = self.rpn_head.loss(logits, deltas, anchors, targets)
        shapes = [target.image_shape for target in targets]
        proposals = self.rpn_head.predict(logits.detach(), deltas.detach(), anchors, shapes, self.proposal_cfg)
        return [boxes for boxes, _ in proposals], losses

    def proposals(self, features: tuple[Tensor, ...], data_samples: list[DetDataSample]) -> list[Tensor]:
        """Proposals [(P, 4)] in input pixels."""
        shapes = [sample.img_shape[:2] for sample in data_samples]
        return [boxes for boxes, _ in self.rpn_head.predict(*self.rpn_head(features), shapes)]

    @torch.no_grad()
    def predict(self, features: tuple[Tensor, ...], data_samples: list[DetDataSample]) -> list[DetDataSample]:
        metas = [sample.metainfo for sample in data_samples]
        detections = self.roi_head.predict(features, self.proposals(features, data_samples), metas)
        masks = [None] * len(detections)
        if self.roi_head.mask_head is not None:
            masks = self.roi_head.predict_masks(features, detections, metas)
        for sample, found, found_masks in zip(data_samples, detections, masks):
            sample.pred_instances = InstanceData(bboxes=found.boxes, scores=found.scores, labels=found.labels)
            if found_masks is not None:
                sample.pred_instances.masks = found_masks
        return data_samples


@MODELS.register_module()
class MaskRCNN(FasterRCNN):
    """Faster R-CNN whose RoI head has a mask head (He et al. 2017)."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        if self.roi_head.mask_head is None:
            raise UserError('MaskRCNN: roi_head has no mask_head; add one, or use FasterRCNN')


@MODELS.register_module()
class CascadeRCNN(FasterRCNN):
    """Faster or Mask R-CNN whose RoI head is a `CascadeRoIHead` (Cai and Vasconcelos 2018)."""


@MODELS.register_module()
class FastRCNN(FasterRCNN):
    """The second stage alone (Girshick 2015), on the `proposals` that each data sample brings, in input pixels."""

    def __init__(self, backbone: dict, roi_head: dict, **kwargs):
        super().__init__(backbone=backbone, rpn_head=None, roi_head=roi_head, **kwargs)

    def training_proposals(self, features, data_samples, targets) -> tuple[list[Tensor], dict[str, Tensor]]:
        return self.proposals(features, data_samples), {}

    def proposals(self, features, data_samples) -> list[Tensor]:
        for sample in data_samples:
            if 'proposals' not in sample:
                raise UserError(
                    f'FastRCNN: picture {sample.get("img_id")} has no proposals; give the data set a proposal_file and '
                    'the pipeline LoadProposals'
                )
        return [sample.proposals.bboxes.to(features[0].device, non_blocking=True) for sample in data_samples]
