"""Cascade R-CNN's second stage: box heads in a row, each trained on the boxes of the one before.

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
class CascadeRoIHead(BaseModule):
    """`num_stages` box heads, each with its own IoU threshold, and as many mask heads if given (arXiv 1712.00726).

    Args:
        stage_loss_weights: factor of each stage's losses.
        bbox_roi_extractor, bbox_head, mask_roi_extractor, mask_head: one for all stages or a list.
        train_cfg: list of dict(assigner, sampler, mask_size).
        test_cfg: dict(score_thr, nms, max_per_img, mask_thr_binary[, keep_all_stages]); with ``keep_all_stages=True``
            `CascadeRCNN` also gives what each stage finds by itself.
        average: scores are of the stages' mean 'logits' (mmdetection), or their mean 'probabilities' (detectron2).
    """

    needs = staticmethod(needed_settings)

    def __init__(
        self,
        num_stages: int,
        stage_loss_weights: list[float],
        bbox_roi_extractor: dict | list[dict],
        bbox_head: dict | list[dict],
        mask_roi_extractor: dict | list[dict] | None = None,
        mask_head: dict | list[dict] | None = None,
        train_cfg: list[dict] | None = None,
        test_cfg: dict | None = None,
        init_cfg: dict | list[dict] | None = None,
        average: str = 'logits',
    ):
        super().__init__(init_cfg)
        if average not in ('logits', 'probabilities'):
            raise UserError(f"CascadeRoIHead: average={average!r} is neither 'logits' nor 'probabilities'")
        check_keys('test_cfg.rcnn', test_cfg, (*TEST_KEYS, 'keep_all_stages'))
        for index, cfg in enumerate(train_cfg or ()):
            check_keys(f'train_cfg.rcnn.{index}', cfg, TRAIN_KEYS)
        if len(stage_loss_weights) != num_stages:
            raise UserError(
                f'CascadeRoIHead: {len(stage_loss_weights)} entries of stage_loss_weights for num_stages={num_stages}'
            )
        self.num_stages = num_stages
        self.stage_loss_weights = stage_loss_weights
        self.average = average
        self.train_cfg = train_cfg
        self.test_cfg = test_cfg

        def per_stage(name: str, cfg: dict | list[dict]) -> nn.ModuleList:
            cfgs = cfg if isinstance(cfg, (list, tuple)) else [cfg] * num_stages
            if len(cfgs) != num_stages:
                raise UserError(f'CascadeRoIHead: {len(cfgs)} entries of {name} for num_stages={num_stages}')
            return nn.ModuleList(MODELS.build(c) for c in cfgs)

        self.bbox_roi_extractor = per_stage('bbox_roi_extractor', bbox_roi_extractor)
        self.bbox_head = per_stage('bbox_head', bbox_head)
        if not all(getattr(head, 'with_cls', True) for head in self.bbox_head):
            raise UserError('CascadeRoIHead: a bbox_head has with_cls=False, and nothing else gives its scores')
        self.mask_head = None
        if mask_head is not None:
            own = mask_roi_extractor is not None
            shared = self.bbox_roi_extractor
            self.mask_roi_extractor = per_stage('mask_roi_extractor', mask_roi_extractor) if own else shared
            self.mask_head = per_stage('mask_head', mask_head)
        if train_cfg is not None:
            if len(train_cfg) != num_stages:
                raise UserError(f'CascadeRoIHead: {len(train_cfg)} entries of train_cfg for num_stages={num_stages}')
            self.assigners = [TASK_UTILS.build(cfg['assigner']) for cfg in train_cfg]
            self.samplers = [TASK_UTILS.build(cfg['sampler']) for cfg in train_cfg]
            for parts in zip(self.assigners, self.samplers):
                look_at_sampling(*parts)
        mask_extractors = getattr(self, 'mask_roi_extractor', self.bbox_roi_extractor)
        mask_heads = self.mask_head or [None] * num_stages
        settings = train_cfg or [None] * num_stages
        for *extractors, bbox_head, mask_head, cfg in zip(
            self.bbox_roi_extractor, mask_extractors, self.bbox_head, mask_heads, settings
        ):
            look_at_stage(extractors, bbox_head, mask_head, cfg)

    @property
    def num_classes(self) -> int:
        return self.bbox_head[0].num_classes

    def forward(self, features: tuple[Tensor, ...], boxes: list[Tensor], stage: int) -> tuple[Tensor, Tensor]:
        """Logits (R, C + 1) and deltas (R, C or 1, 4) of one stage for the boxes [(n_i, 4)] of each image."""
        return self.bbox_head[stage](self.bbox_roi_extractor[stage](features, to_rois(boxes)))

    @torch.no_grad()
    def sample(
        self, features: tuple[Tensor, ...], proposals: list[Tensor], targets: list[Target], stage: int
    ) -> list[Sampled]:
        """The RoIs of each image that a stage is trained on, from what the one before gives (P, 4)."""
        assigner, sampler = self.assigners[stage], self.samplers[stage]
        forward = partial(self, features, stage=stage)
        return [
            sample_rois(assigner, sampler, boxes, target, self.num_classes, candidate_losses(forward, index))
            for index, (boxes, target) in enumerate(zip(proposals, targets))
        ]

    def loss(self, features: tuple[Tensor, ...], proposals: list[Tensor], targets: list[Target]) -> dict:
        """Losses of all stages, named 's0.loss_cls' and so on; the first stage gets proposals [(P, 4)]."""
        losses = {}
        for stage, weight in enumerate(self.stage_loss_weights):
            sampled = self.sample(features, proposals, targets, stage)
            positives = positives_on_host(sampled) if self.mask_head is not None else ()
            logits, deltas = self(features, [s.boxes for s in sampled], stage)
            of_stage = bbox_loss(self.bbox_head[stage], logits, deltas, sampled, self.train_cfg[stage])
            if self.mask_head is not None:
                pool = partial(self._pool_masks, features, stage=stage)
                size = self.train_cfg[stage]['mask_size']
                of_stage.update(mask_loss(self.mask_head[stage], pool, sampled, positives, targets, size))
            losses.update({f's{stage}.{k}': v * weight if 'loss' in k else v for k, v in of_stage.items()})
            if stage + 1 < self.num_stages:
                proposals = self.refine_sampled(sampled, logits, deltas, targets, stage)
        return losses

    def predict(self, features: tuple[Tensor, ...], proposals: list[Tensor], metas: list[dict]) -> list[Detections]:
        """Detections of each image, without masks: scores of all stages, boxes of the last one."""
        return self.predict_stages(features, proposals, metas)[-1]

    def predict_stages(
        self, features: tuple[Tensor, ...], proposals: list[Tensor], metas: list[dict]
    ) -> list[list[Detections]]:
        """`predict`'s detections, and before them, with ``keep_all_stages``, those of each stage by itself."""
        counts = [boxes.shape[0] for boxes in proposals]
        found, total = [], 0
        for stage in range(self.num_stages):
            logits, deltas = self(features, proposals, stage)
            scores = logits.float() if self.average == 'logits' else logits.float().softmax(-1)
            total = total + scores
            rois = proposals, split_or_none(deltas, counts)
            if self.test_cfg.get('keep_all_stages', False):
                found.append(self._detect(scores, *rois, metas, stage))
            if stage + 1 < self.num_stages:
                labels = split_or_none(logits[:, :-1].argmax(1), counts)
                outputs = zip(proposals, labels, rois[1], metas)
                proposals = [self.refine(*roi, meta['img_shape'][:2], stage) for *roi, meta in outputs]
        return [*found, self._detect(total / self.num_stages, *rois, metas, self.num_stages - 1)]

    def _detect(
        self, scores: Tensor, boxes: list[Tensor], deltas: list[Tensor | None], metas: list[dict], stage: int
    ) -> list[Detections]:
        """From scores (R, C + 1) as `average` says, boxes [(n_i, 4)] and their deltas of a stage."""
        scores = (scores.softmax(-1) if self.average == 'logits' else scores)[:, :-1]
        outputs = zip(boxes, split_or_none(scores, [b.shape[0] for b in boxes]), deltas, metas)
        return [detect(self.bbox_head[stage].bbox_coder, *rois, meta, self.test_cfg) for *rois, meta in outputs]

    def predict_masks(
        self, features: tuple[Tensor, ...], detections: list[Detections], metas: list[dict]
    ) -> list[list[dict]]:
        """One RLE of the original image's size for each detection, from the mean of the stages' probabilities."""
        boxes = [scale_boxes(d.boxes, m['scale_factor']) for d, m in zip(detections, metas)]
        probabilities = self.mask_probabilities(features, boxes, torch.cat([d.labels for d in detections]))
        return masks_of(probabilities, detections, metas, self.test_cfg)

    def mask_probabilities(self, features: tuple[Tensor, ...], boxes: list[Tensor], labels: Tensor) -> Tensor:
        """The stages' mean (D, h, w) in the boxes [(n_i, 4)] of each image, of the classes `labels` (D,)."""
        probabilities = [
            head.predict(head(self._pool_masks(features, boxes, stage)), labels)
            for stage, head in enumerate(self.mask_head)
        ]
        return torch.stack(probabilities).mean(0)

    def _pool_masks(self, features: tuple[Tensor, ...], boxes: list[Tensor], stage: int) -> Tensor:
        """RoI features of the boxes [(n_i, 4)] of each image for a stage's mask head."""
        return self.mask_roi_extractor[stage](features, to_rois(boxes))

    def refine(
        self, boxes: Tensor, labels: Tensor, deltas: Tensor | None, image_shape: tuple[int, int], stage: int
    ) -> Tensor:
        """Boxes (R, 4) moved by a stage's deltas (R, C or 1, 4) of their `labels` (R,), clipped into the image.

        A stage without regression leaves them where they are.
        """
        if deltas is None:
            return boxes
        head = self.bbox_head[stage]
        column = torch.zeros_like(labels) if head.reg_class_agnostic else labels
        chosen = deltas[torch.arange(labels.shape[0], device=labels.device), column].float()
        return head.bbox_coder.decode(boxes, chosen, image_shape)

    @torch.no_grad()
    def refine_sampled(
        self, sampled: list[Sampled], logits: Tensor, deltas: Tensor | None, targets: list[Target], stage: int
    ) -> list[Tensor]:
        """What a stage makes of its sampled boxes, [(P, 4)] for the next one.

        A ground-truth box that the sampler added is left out: it joins the next stage anew, and moved it would be a
        proposal too good to be true.
        """
        counts = [len(s.boxes) for s in sampled]
        moved = []
        outputs = zip(sampled, logits.split(counts), split_or_none(deltas, counts), targets)
        for s, image_logits, image_deltas, target in outputs:
            labels = torch.where(s.labels < self.num_classes, s.labels, image_logits[:, :-1].argmax(1))
            boxes = self.refine(s.boxes, labels, image_deltas, target.image_shape, stage)
            positive = torch.arange(len(boxes), device=boxes.device) < s.num_positive
            is_ground_truth = positive & (s.boxes == s.gt_boxes).all(1)
            moved.append(boxes[~is_ground_truth])
        return moved
