"""Cascade R-CNN's second stage: box heads in a row, each trained on the boxes of the one before.

N images, P proposals and G ground-truth boxes of a picture, R sampled RoIs of the batch, C classes (C itself is the
background); boxes are xyxy in input pixels unless said otherwise.
"""

import torch
from torch import Tensor, nn

from mmdet.config.errors import UserError
from mmdet.models.options import apply_init_cfg, check_keys
from mmdet.models.roi_heads.bbox_head import ConvFCBBoxHead
from mmdet.models.roi_heads.roi_extractor import to_rois
from mmdet.models.roi_heads.standard_roi_head import (
    TEST_KEYS,
    TRAIN_KEYS,
    Detections,
    Sampled,
    StandardRoIHead,
    candidate_losses,
    detect,
    masks_of,
    positives_mask_loss,
    positives_on_host,
    sample_rois,
    sampled_loss,
)
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures import Target
from mmdet.structures.boxes import scale_boxes


@MODELS.register_module()
class CascadeRoIHead(nn.Module):
    """`num_stages` box heads, each with its own IoU threshold, and as many mask heads if given (arXiv 1712.00726).

    Args:
        stage_loss_weights: factor of each stage's losses.
        bbox_roi_extractor, bbox_head, mask_roi_extractor, mask_head: one for all stages or a list.
        train_cfg: list of dict(assigner, sampler, mask_size).
        test_cfg: dict(score_thr, nms, max_per_img, mask_thr_binary).
        average: scores are of the stages' mean 'logits' (mmdetection), or their mean 'probabilities' (detectron2).
    """

    needs = StandardRoIHead.needs

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
        super().__init__()
        if average not in ('logits', 'probabilities'):
            raise UserError(f"CascadeRoIHead: average={average!r} is neither 'logits' nor 'probabilities'")
        check_keys('test_cfg.rcnn', test_cfg, TEST_KEYS)
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
        self.mask_head = None
        if mask_head is not None:
            self.mask_roi_extractor = per_stage('mask_roi_extractor', mask_roi_extractor or bbox_roi_extractor)
            self.mask_head = per_stage('mask_head', mask_head)
        if train_cfg is not None:
            if len(train_cfg) != num_stages:
                raise UserError(f'CascadeRoIHead: {len(train_cfg)} entries of train_cfg for num_stages={num_stages}')
            self.assigners = [TASK_UTILS.build(cfg['assigner']) for cfg in train_cfg]
            self.samplers = [TASK_UTILS.build(cfg['sampler']) for cfg in train_cfg]
        apply_init_cfg(self, init_cfg)

    @property
    def num_classes(self) -> int:
        return self.bbox_head[0].num_classes

    def forward(self, features: tuple[Tensor, ...], boxes: list[Tensor], stage: int) -> tuple[Tensor, Tensor]:
        """Logits (R, C + 1) and deltas (R, C or 1, 4) of one stage."""
        return self.bbox_head[stage](self.bbox_roi_extractor[stage](features, to_rois(boxes)))

    def loss(self, features: tuple[Tensor, ...], proposals: list[Tensor], targets: list[Target]) -> dict:
        """Losses of all stages, named 's0.loss_cls' and so on; the first stage gets proposals [(P, 4)]."""
        losses = {}
        for stage, weight in enumerate(self.stage_loss_weights):
            with torch.no_grad():
                sampled = [
                    sample_rois(
                        self.assigners[stage],
                        self.samplers[stage],
                        boxes,
                        target,
                        self.num_classes,
                        candidate_losses(self.bbox_head[stage], self.bbox_roi_extractor[stage], features, i),
                    )
                    for i, (boxes, target) in enumerate(zip(proposals, targets))
                ]
            positives = positives_on_host(sampled) if self.mask_head is not None else ()
            boxes = [s.boxes for s in sampled]
            logits, deltas = self(features, boxes, stage)
            head = self.bbox_head[stage]
            found = sampled_loss(head, logits, deltas, sampled, self.train_cfg[stage])
            if self.mask_head is not None:
                parts = self.mask_head[stage], self.mask_roi_extractor[stage]
                size = self.train_cfg[stage]['mask_size']
                found.update(positives_mask_loss(*parts, features, sampled, positives, targets, size))
            losses.update({f's{stage}.{k}': v * weight if 'loss' in k else v for k, v in found.items()})
            if stage + 1 < self.num_stages:
                with torch.no_grad():
                    proposals = self._next_proposals(head, sampled, logits, deltas, targets)
        return losses

    @staticmethod
    def _next_proposals(
        head: ConvFCBBoxHead, sampled: list[Sampled], logits: Tensor, deltas: Tensor, targets: list[Target]
    ) -> list[Tensor]:
        """The sampled boxes, moved; a ground-truth box that joined them is left out, it joins the next stage anew."""
        counts = [len(s.boxes) for s in sampled]
        moved = []
        for s, image_logits, image_deltas, target in zip(sampled, logits.split(counts), deltas.split(counts), targets):
            labels = torch.where(s.labels < head.num_classes, s.labels, image_logits[:, :-1].argmax(1))
            boxes = refine(head, s.boxes, labels, image_deltas, target.image_shape)
            moved.append(boxes[~_is_ground_truth(s)])
        return moved

    def predict(self, features: tuple[Tensor, ...], proposals: list[Tensor], metas: list[dict]) -> list[Detections]:
        """Detections of each picture, without masks: scores of all stages, boxes of the last one."""
        counts = [len(boxes) for boxes in proposals]
        total = 0
        for stage, head in enumerate(self.bbox_head):
            logits, deltas = self(features, proposals, stage)
            total = total + (logits.float() if self.average == 'logits' else logits.float().softmax(-1))
            if stage + 1 < self.num_stages:
                labels = logits[:, :-1].argmax(1)
                proposals = [
                    refine(head, *image, meta['img_shape'][:2])
                    for *image, meta in zip(proposals, labels.split(counts), deltas.split(counts), metas)
                ]
        mean = total / self.num_stages
        scores = (mean.softmax(-1) if self.average == 'logits' else mean)[:, :-1]
        return [
            detect(head.bbox_coder, *image, meta, self.test_cfg)
            for *image, meta in zip(proposals, scores.split(counts), deltas.split(counts), metas)
        ]

    def predict_masks(
        self, features: tuple[Tensor, ...], detections: list[Detections], metas: list[dict]
    ) -> list[list[dict]]:
        """One RLE of the original picture's size for each detection, from the mean of the stages' probabilities."""
        boxes = [scale_boxes(d.boxes, m['scale_factor']) for d, m in zip(detections, metas)]
        labels = torch.cat([d.labels for d in detections])
        rois = to_rois(boxes)
        probabilities = [
            head.predict(head(extractor(features, rois)), labels)
            for head, extractor in zip(self.mask_head, self.mask_roi_extractor)
        ]
        return masks_of(torch.stack(probabilities).mean(0), detections, metas, self.test_cfg)


def refine(head: ConvFCBBoxHead, boxes: Tensor, labels: Tensor, deltas: Tensor, image_shape: tuple[int, int]) -> Tensor:
    """Boxes (R, 4) moved by the deltas (R, C or 1, 4) of their `labels` (R,), clipped into the picture."""
    column = torch.zeros_like(labels) if head.reg_class_agnostic else labels
    chosen = deltas[torch.arange(len(labels), device=labels.device), column].float()
    return head.bbox_coder.decode(boxes, chosen, image_shape)


def _is_ground_truth(sampled: Sampled) -> Tensor:
    """Which sampled boxes are their own ground truth: those the sampler added."""
    positive = torch.arange(len(sampled.boxes), device=sampled.boxes.device) < sampled.num_positive
    return positive & (sampled.boxes == sampled.gt_boxes).all(1)
