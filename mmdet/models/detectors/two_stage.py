"""Detectors that classify what proposes itself.

N images, C channels, H and W of the padded batch, P proposals of an image.
"""

import torch
from mmengine.config import ConfigDict
from mmengine.model import BaseModel
from torch import Tensor

from mmdet.config.contracts import on_first_call, takes_ours
from mmdet.config.overrides import refuse_overrides
from mmdet.models import contracts
from mmdet.models.data_preprocessor import to_target
from mmdet.models.dense_heads.common import PROPOSAL_KEYS
from mmdet.models.detections import Detections
from mmdet.models.detectors.parts import (
    build_backbone,
    build_neck,
    build_preprocessor,
    frame_of_input,
    look_at_maps,
    look_at_training,
    metas_of,
)
from mmdet.models.initialize import init_weights
from mmdet.models.settings import check_heads, check_keys, check_settings
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample, RLEMasks, Target


@refuse_overrides(
    'extend/head.md', foreign=(),
    _forward='forward', add_pred_to_datasample='predict',
    forward_train='loss', simple_test='predict', aug_test='predict',
)  # fmt: skip
class TwoStageDetector(BaseModel):
    """Backbone, neck, region proposals, RoI head.

    Args:
        train_cfg: dict(rpn=dict(assigner, sampler), rpn_proposal=dict(nms_pre, ...), rcnn=dict(assigner, ...)).
        test_cfg: dict(rpn=dict(nms_pre, ...), rcnn=dict(score_thr, ...)).
        init_cfg: see `mmdet.models.initialize`.

    Raises:
        UserError: keys of train_cfg or test_cfg that nothing reads.
    """

    compiles = dict(extract_feat='images')

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
        init_cfg: dict | list[dict] | None = None,
    ):
        super().__init__(build_preprocessor(data_preprocessor), init_cfg)
        # the heads hold their parts of these, so that model.test_cfg.rcnn.score_thr can still be changed
        train_cfg, test_cfg = self.train_cfg, self.test_cfg = ConfigDict(train_cfg or {}), ConfigDict(test_cfg or {})
        check_keys('train_cfg', train_cfg, ('rpn', 'rpn_proposal', 'rcnn'))
        check_keys('train_cfg.rpn_proposal', train_cfg.get('rpn_proposal'), PROPOSAL_KEYS)
        check_keys('test_cfg', test_cfg, ('rpn', 'rcnn'))
        self.backbone = build_backbone(backbone)
        self.neck = build_neck(neck, self.backbone)
        if rpn_head is not None:
            rpn_head = dict(rpn_head, train_cfg=train_cfg.get('rpn'), test_cfg=test_cfg.get('rpn'))
            self.rpn_head = MODELS.build(rpn_head)
        self.roi_head = MODELS.build(dict(roi_head, train_cfg=train_cfg.get('rcnn'), test_cfg=test_cfg.get('rcnn')))
        self.proposal_cfg = train_cfg.get('rpn_proposal', test_cfg.get('rpn'))
        self.with_neck, self.with_rpn = self.neck is not None, rpn_head is not None
        self.with_bbox, self.with_mask = True, self.roi_head.mask_head is not None
        look_at_maps(self.backbone, self.neck, getattr(self, 'rpn_head', None))
        look_at_training(self, TwoStageDetector)
        if self.with_rpn:
            takes_ours(self.rpn_head, loss='loss(*rpn_head(features), targets)',
                       predict='predict(*rpn_head(features), image_shapes)')  # fmt: skip
            on_first_call(self.rpn_head, 'forward', contracts.proposed)
            on_first_call(self.rpn_head, 'loss', contracts.losses)
            on_first_call(self.rpn_head, 'predict', contracts.proposals)
        takes_ours(self.roi_head, loss='loss(features, proposals, targets)',
                   predict='predict(features, proposals, metas)')  # fmt: skip
        on_first_call(self.roi_head, 'loss', contracts.losses)
        on_first_call(self.roi_head, 'predict', contracts.detections)

    @property
    def final_test_cfg(self) -> dict | None:
        """The part of test_cfg that the detections obey."""
        return self.roi_head.test_cfg

    def init_weights(self) -> None:
        """Called by the Runner once, before training."""
        init_weights(self)

    def forward(self, inputs: Tensor, data_samples: list[DetDataSample] | None = None, mode: str = 'tensor'):
        """Batch (N, C, H, W) -> losses ('loss'), the samples with `pred_instances` ('predict'), maps ('tensor')."""
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        if mode == 'predict':
            return self.predict(inputs, data_samples)
        return self.extract_feat(inputs)

    def extract_feat(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """The maps of all levels, fine to coarse."""
        features = self.backbone(inputs)
        return features if self.neck is None else self.neck(features)

    def loss(self, inputs: Tensor, data_samples: list[DetDataSample]) -> dict[str, Tensor]:
        """Losses of all heads by their names."""
        features = self.extract_feat(inputs)
        classes = getattr(self.roi_head, 'num_classes', None)
        targets = [to_target(sample, features[0].device, classes) for sample in data_samples]
        proposals, losses = self.training_proposals(features, data_samples, targets)
        losses.update(self.roi_head.loss(features, proposals, targets))
        return losses

    @torch.no_grad()
    def predict(
        self, inputs: Tensor, data_samples: list[DetDataSample], rescale: bool = True
    ) -> list[DetDataSample]:
        """The samples with `pred_instances`, in pixels of the original images; ``rescale=False``: of the input."""
        features = self.extract_feat(inputs)
        metas = metas_of(data_samples, rescale)
        detections = self.detect(features, self.proposals(features, data_samples), data_samples, metas)
        for sample, found in zip(data_samples, detections):
            sample.pred_instances = found.to_instances()
        if self.roi_head.mask_head is not None:
            for sample, masks, meta in zip(
                data_samples, self.roi_head.predict_masks(features, detections, metas), metas
            ):
                sample.pred_instances.masks = RLEMasks(masks, *meta['ori_shape'][:2])
        return data_samples

    def find(self, inputs: Tensor, image_shape: tuple[int, int]) -> dict[str, Tensor]:
        """The detections of one image, for torch.export.

        Args:
            inputs: (1, C, H, W).
            image_shape: (h, w) of the image without padding.

        Returns:
            boxes (D, 4) in pixels of the input, scores (D,), labels (D,) and, with a mask head, the probabilities of
            the masks in their boxes (D, h, w).
        """
        features = self.extract_feat(inputs)
        ((proposals, _),) = self.rpn_head.predict(*self.rpn_head(features), [image_shape])
        (found,) = self.roi_head.predict(features, [proposals], [frame_of_input(image_shape)])
        outputs = found._asdict()
        if self.roi_head.mask_head is not None:
            outputs['masks'] = self.roi_head.mask_probabilities(features, [found.boxes], found.labels)
        return outputs

    def detect(
        self,
        features: tuple[Tensor, ...],
        proposals: list[Tensor],
        data_samples: list[DetDataSample],
        metas: list[dict],
    ) -> list[Detections]:
        """Detections of each image from its proposals [(P, 4)], without masks; `metas` say how they are scaled back."""
        return self.roi_head.predict(features, proposals, metas)

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
        """Proposals [(P, 4)], xyxy in input pixels."""
        shapes = [sample.img_shape[:2] for sample in data_samples]
        return [boxes for boxes, _ in self.rpn_head.predict(*self.rpn_head(features), shapes)]
