"""The second stage: proposals become classified boxes with masks.

N images, P proposals of an image, R sampled RoIs of the batch, D detections of an image, C classes (C itself is the
background); boxes are xyxy in input pixels unless said otherwise.
"""

from functools import partial

import torch
from torch import Tensor, nn

from mmdet.config.errors import UserError
from mmdet.config.overrides import refuse_overrides
from mmdet.models.detections import Detections
from mmdet.models.initialize import BaseModule
from mmdet.models.roi_heads.common import (
    ELSEWHERE,
    TEST_KEYS,
    TRAIN_KEYS,
    Sampled,
    bbox_loss,
    candidate_losses,
    detect,
    look_at_sampling,
    look_at_stage,
    mask_loss,
    masks_of,
    needed_settings,
    positives_on_host,
    sample_rois,
    split_or_none,
)
from mmdet.models.roi_heads.single_level_roi_extractor import to_rois
from mmdet.models.settings import check_keys
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures import Target
from mmdet.structures.boxes import scale_boxes


@MODELS.register_module()
@refuse_overrides('extend/head.md', **ELSEWHERE)
class StandardRoIHead(BaseModule):
    """One box head and, if given, one mask head on sampled proposals.

    Args:
        shared_head: network between the RoI features and all heads, such as C4's `ResLayer`.
        mask_roi_extractor: None shares `bbox_roi_extractor`.
        train_cfg: dict(assigner, sampler, mask_size[, pos_weight]).
        test_cfg: dict(score_thr, nms, max_per_img, mask_thr_binary[, min_bbox_size]); ``mask_paste='resize'`` draws
            masks as mmdetection 0.x did.
    """

    needs = staticmethod(needed_settings)

    def __init__(
        self,
        bbox_roi_extractor: dict,
        bbox_head: dict,
        mask_roi_extractor: dict | None = None,
        mask_head: dict | None = None,
        shared_head: dict | None = None,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        init_cfg: dict | list[dict] | None = None,
    ):
        super().__init__(init_cfg)
        check_keys('train_cfg.rcnn', train_cfg, TRAIN_KEYS)
        check_keys('test_cfg.rcnn', test_cfg, TEST_KEYS)
        self.train_cfg = train_cfg
        self.test_cfg = test_cfg
        self.bbox_roi_extractor = MODELS.build(bbox_roi_extractor)
        self.bbox_head = MODELS.build(bbox_head)
        if not getattr(self.bbox_head, 'with_cls', True):
            raise UserError('StandardRoIHead: bbox_head has with_cls=False, and nothing else gives scores')
        self.shared_head = None if shared_head is None else MODELS.build(shared_head)
        self.mask_head = None
        if mask_head is not None:
            own = mask_roi_extractor is not None
            self.mask_roi_extractor = MODELS.build(mask_roi_extractor) if own else self.bbox_roi_extractor
            self.mask_head = MODELS.build(mask_head)
        if train_cfg is not None:
            self.assigner = TASK_UTILS.build(train_cfg['assigner'])
            self.sampler = TASK_UTILS.build(train_cfg['sampler'])
            look_at_sampling(self.assigner, self.sampler)
        extractors = self.bbox_roi_extractor, getattr(self, 'mask_roi_extractor', self.bbox_roi_extractor)
        look_at_stage(extractors, self.bbox_head, self.mask_head, train_cfg)

    @property
    def num_classes(self) -> int:
        return self.bbox_head.num_classes

    def forward(self, features: tuple[Tensor, ...], boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (R, C + 1) and deltas (R, C or 1, 4) of the boxes [(n_i, 4)] of each image, image after image.

        Without regression the deltas are None.
        """
        return self.bbox_head(self._pool(self.bbox_roi_extractor, features, boxes))

    def _pool(self, extractor: nn.Module, features: tuple[Tensor, ...], boxes: list[Tensor]) -> Tensor:
        """RoI features of the boxes [(n_i, 4)] of each image, (R, channels, S, S)."""
        pooled = extractor(features, to_rois(boxes))
        return pooled if self.shared_head is None else self.shared_head(pooled)

    @torch.no_grad()
    def sample(self, features: tuple[Tensor, ...], proposals: list[Tensor], targets: list[Target]) -> list[Sampled]:
        """The RoIs of each image that are trained on, from its proposals (P, 4)."""
        forward = partial(self, features)
        return [
            sample_rois(self.assigner, self.sampler, boxes, target, self.num_classes, candidate_losses(forward, index))
            for index, (boxes, target) in enumerate(zip(proposals, targets))
        ]

    def loss(self, features: tuple[Tensor, ...], proposals: list[Tensor], targets: list[Target]) -> dict:
        """Losses of proposals [(P, 4)] that carry no gradient."""
        sampled = self.sample(features, proposals, targets)
        positives = positives_on_host(sampled) if self.mask_head is not None else ()
        logits, deltas = self(features, [s.boxes for s in sampled])
        losses = bbox_loss(self.bbox_head, logits, deltas, sampled, self.train_cfg)
        if self.mask_head is not None:
            pool = partial(self._pool, self.mask_roi_extractor, features)
            losses.update(mask_loss(self.mask_head, pool, sampled, positives, targets, self.train_cfg['mask_size']))
        return losses

    def predict(self, features: tuple[Tensor, ...], proposals: list[Tensor], metas: list[dict]) -> list[Detections]:
        """Detections of each image, without masks."""
        logits, deltas = self(features, proposals)
        scores = logits.float().softmax(-1)[:, :-1]
        counts = [boxes.shape[0] for boxes in proposals]
        outputs = zip(proposals, split_or_none(scores, counts), split_or_none(deltas, counts), metas)
        return [detect(self.bbox_head.bbox_coder, *rois, meta, self.test_cfg) for *rois, meta in outputs]

    def predict_masks(
        self, features: tuple[Tensor, ...], detections: list[Detections], metas: list[dict]
    ) -> list[list[dict]]:
        """One RLE of the original image's size for each detection."""
        boxes = [scale_boxes(d.boxes, m['scale_factor']) for d, m in zip(detections, metas)]
        probabilities = self.mask_probabilities(features, boxes, torch.cat([d.labels for d in detections]))
        return masks_of(probabilities, detections, metas, self.test_cfg)

    def mask_probabilities(self, features: tuple[Tensor, ...], boxes: list[Tensor], labels: Tensor) -> Tensor:
        """(D, h, w) in the boxes [(n_i, 4)] of each image, of the classes `labels` (D,)."""
        return self.mask_head.predict(self.mask_head(self._pool(self.mask_roi_extractor, features, boxes)), labels)
