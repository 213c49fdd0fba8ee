"""The second stage: proposals become classified boxes with masks.

N images, P proposals and G ground-truth boxes of a picture, R sampled RoIs of the batch, D detections of a picture,
C classes (C itself is the background); boxes are xyxy in input pixels unless said otherwise.
"""

from collections.abc import Callable
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdet.models.dense_heads.common import number_kept, weight_positives
from mmdet.models.options import apply_init_cfg, check_keys
from mmdet.models.roi_heads.mask_paste import resized_masks_to_rle
from mmdet.models.roi_heads.roi_extractor import to_rois
from mmdet.ops import apply_nms, masks_to_rle
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures import Target
from mmdet.structures.boxes import scale_boxes, unscale_boxes

TRAIN_KEYS = ('assigner', 'sampler', 'mask_size', 'pos_weight', 'debug')
TEST_KEYS = ('score_thr', 'nms', 'max_per_img', 'mask_thr_binary', 'min_bbox_size', 'mask_paste')


class Sampled(NamedTuple):
    """RoIs of one picture that are trained on, the `num_positive` positives first.

    boxes (S, 4), labels (S,), gt_boxes (S, 4), gt_index (S,): the matched ground truth, meaningless for negatives.
    """

    boxes: Tensor
    labels: Tensor
    gt_boxes: Tensor
    gt_index: Tensor
    num_positive: int


class Detections(NamedTuple):
    """Detections of one picture: boxes (D, 4) in pixels of the original picture, scores (D,), labels (D,)."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def sample_rois(
    assigner,
    sampler,
    proposals: Tensor,
    target: Target,
    num_classes: int,
    losses_of: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Sampled:
    """Choose the proposals (P, 4) to train on; the ground truth joins them if the sampler says so.

    `losses_of` gives the classification loss (B,) of boxes (B, 4) with labels (B,), to samplers that ask for it.
    """
    matched, iou = assigner(proposals, target.boxes, target.ignored_boxes)
    if sampler.add_gt_as_proposals:  # afterwards: among the candidates each would be its own best match
        proposals = torch.cat([target.boxes, proposals])
        matched = torch.cat([torch.arange(len(target.boxes), device=matched.device), matched])
        iou = torch.cat([iou.new_ones(len(target.boxes)), iou])
    if getattr(sampler, 'needs_losses', False):
        labels = torch.full_like(matched, num_classes)
        labels[matched >= 0] = target.labels[matched[matched >= 0]]
        positive, negative = sampler(matched, iou, losses_of(proposals, labels))
    else:
        positive, negative = sampler(matched, iou)
    index = torch.cat([positive, negative])
    gt_index = matched[index].clamp(min=0)
    labels = torch.full_like(index, num_classes)
    labels[: len(positive)] = target.labels[gt_index[: len(positive)]]
    # A picture without objects has no row to point to; its negatives' boxes are never read.
    gt_boxes = target.boxes[gt_index] if len(target.boxes) else torch.zeros_like(proposals[index])
    return Sampled(proposals[index], labels, gt_boxes, gt_index, len(positive))


def detect(
    bbox_coder, boxes: Tensor, scores: Tensor, deltas: Tensor, meta: dict, cfg: dict
) -> Detections:
    """Detections of one picture from its RoIs' boxes (R, 4), scores (R, C) and deltas (R, C or 1, 4).

    Pairs of RoI and class above ``score_thr`` go through per-class NMS; the best ``max_per_img`` remain.
    """
    row, label = (scores > cfg['score_thr']).nonzero(as_tuple=True)
    column = label if deltas.shape[1] == scores.shape[1] else 0
    boxes = bbox_coder.decode(boxes[row], deltas[row, column].float(), meta['img_shape'][:2])
    # NMS acts on boxes in pixels of the original picture, the ones that are evaluated.
    boxes, scores = unscale_boxes(boxes, meta['scale_factor']), scores[row, label]
    if 'min_bbox_size' in cfg:
        large = (bbox_coder.sides(boxes) >= cfg['min_bbox_size']).all(dim=1).nonzero().squeeze(1)
        boxes, scores, label = boxes[large], scores[large], label[large]
    keep, kept_scores = apply_nms(boxes, scores, label, cfg['nms'])
    count = number_kept(cfg['max_per_img'], len(keep))
    return Detections(boxes[keep[:count]], kept_scores[:count], label[keep[:count]])


def candidate_losses(
    bbox_head: nn.Module, roi_extractor: nn.Module, features: tuple[Tensor, ...], image: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """Classification loss (B,) of boxes (B, 4) of one picture with labels (B,), as `sample_rois` wants it."""

    def losses_of(boxes: Tensor, labels: Tensor) -> Tensor:
        rois = torch.cat([boxes.new_full((len(boxes), 1), image), boxes], dim=1)
        return F.cross_entropy(bbox_head(roi_extractor(features, rois))[0].float(), labels, reduction='none')

    return losses_of


def sampled_loss(bbox_head: nn.Module, logits: Tensor, deltas: Tensor, sampled: list[Sampled], train_cfg: dict) -> dict:
    """The box head's losses of its outputs for all sampled RoIs."""
    labels = torch.cat([s.labels for s in sampled])
    starts = accumulate((len(s.boxes) for s in sampled), initial=0)
    positive = [torch.arange(start, start + s.num_positive, device=labels.device) for start, s in zip(starts, sampled)]
    return bbox_head.loss(
        logits,
        deltas,
        torch.cat([s.boxes for s in sampled]),
        labels,
        torch.cat([s.gt_boxes for s in sampled]),
        torch.cat(positive),
        weight_positives(labels < bbox_head.num_classes, train_cfg.get('pos_weight', -1)),
    )


def positives_on_host(sampled: list[Sampled]) -> tuple[Tensor, ...]:
    """The box of each positive RoI and the index of its ground truth, (P, 5) of each picture.

    The host waits for them: best at once after sampling, when a GPU has nothing else to do.
    """
    rows = [torch.cat([s.boxes, s.gt_index[:, None].to(s.boxes)], dim=1)[: s.num_positive] for s in sampled]
    return torch.cat(rows).cpu().split([s.num_positive for s in sampled])


def mask_targets_of(positives: tuple[Tensor, ...], targets: list[Target], size: int, device: torch.device) -> Tensor:
    """Mask of every positive RoI's ground truth inside the RoI, (R, size, size) in {0, 1}."""
    return torch.cat(
        [
            target.masks.crop_and_resize(rows[:, :4], rows[:, 4].long(), size, device)
            for rows, target in zip(positives, targets)
        ]
    )


def positives_mask_loss(
    mask_head: nn.Module,
    roi_extractor: nn.Module,
    features: tuple[Tensor, ...],
    sampled: list[Sampled],
    positives: tuple[Tensor, ...],
    targets: list[Target],
    size: int,
) -> dict:
    """The mask head's loss on the positive RoIs; ``positives`` are those of `positives_on_host`."""
    boxes = [s.boxes[: s.num_positive] for s in sampled]
    labels = torch.cat([s.labels[: s.num_positive] for s in sampled])
    logits = mask_head(roi_extractor(features, to_rois(boxes)))
    # on the host, while a GPU computes the logits
    mask_targets = mask_targets_of(positives, targets, size, labels.device)
    return mask_head.loss(logits, labels, mask_targets)


def masks_of(probabilities: Tensor, detections: list[Detections], metas: list[dict], cfg: dict) -> list[list[dict]]:
    """Probabilities of all pictures' detections as RLEs of each original picture's size."""
    to_rle = resized_masks_to_rle if cfg.get('mask_paste') == 'resize' else masks_to_rle
    counts = [len(d.boxes) for d in detections]
    boxes = torch.cat([d.boxes for d in detections]).cpu().split(counts)
    return [
        to_rle(p, b, m['ori_shape'][:2], cfg['mask_thr_binary'])
        for p, b, m in zip(probabilities.cpu().split(counts), boxes, metas)
    ]


@MODELS.register_module()
class StandardRoIHead(nn.Module):
    """One box head and, if given, one mask head on sampled proposals.

    Args:
        train_cfg: dict(assigner, sampler, mask_size[, pos_weight]).
        test_cfg: dict(score_thr, nms, max_per_img, mask_thr_binary[, min_bbox_size]); ``mask_paste='resize'`` draws
            masks as mmdetection 0.x did.
    """

    @classmethod
    def needs(cls, cfg: dict) -> dict[str, tuple[str, ...]]:
        """Keys of train_cfg and test_cfg that have no default."""
        masks = dict(train_cfg=('mask_size',), test_cfg=('mask_thr_binary',)) if cfg.get('mask_head') else {}
        return dict(
            train_cfg=('assigner', 'sampler', *masks.get('train_cfg', ())),
            test_cfg=('score_thr', 'nms', 'max_per_img', *masks.get('test_cfg', ())),
        )

    def __init__(
        self,
        bbox_roi_extractor: dict,
        bbox_head: dict,
        mask_roi_extractor: dict | None = None,
        mask_head: dict | None = None,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        init_cfg: dict | list[dict] | None = None,
    ):
        super().__init__()
        check_keys('train_cfg.rcnn', train_cfg, TRAIN_KEYS)
        check_keys('test_cfg.rcnn', test_cfg, TEST_KEYS)
        self.train_cfg = train_cfg
        self.test_cfg = test_cfg
        self.bbox_roi_extractor = MODELS.build(bbox_roi_extractor)
        self.bbox_head = MODELS.build(bbox_head)
        self.mask_head = None
        if mask_head is not None:
            self.mask_roi_extractor = MODELS.build(mask_roi_extractor or bbox_roi_extractor)
            self.mask_head = MODELS.build(mask_head)
        if train_cfg is not None:
            self.assigner = TASK_UTILS.build(train_cfg['assigner'])
            self.sampler = TASK_UTILS.build(train_cfg['sampler'])
        apply_init_cfg(self, init_cfg)

    @property
    def num_classes(self) -> int:
        return self.bbox_head.num_classes

    def forward(self, features: tuple[Tensor, ...], proposals: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (R, C + 1) and deltas (R, C or 1, 4) of all proposals, picture after picture."""
        return self.bbox_head(self.bbox_roi_extractor(features, to_rois(proposals)))

    def loss(self, features: tuple[Tensor, ...], proposals: list[Tensor], targets: list[Target]) -> dict:
        """Losses of proposals [(P, 4)] that carry no gradient."""
        with torch.no_grad():
            sampled = [
                sample_rois(
                    self.assigner,
                    self.sampler,
                    boxes,
                    target,
                    self.num_classes,
                    candidate_losses(self.bbox_head, self.bbox_roi_extractor, features, i),
                )
                for i, (boxes, target) in enumerate(zip(proposals, targets))
            ]
        return self.loss_sampled(features, sampled, targets)

    def loss_sampled(self, features: tuple[Tensor, ...], sampled: list[Sampled], targets: list[Target]) -> dict:
        """Losses of RoIs already chosen."""
        positives = positives_on_host(sampled) if self.mask_head is not None else ()
        logits, deltas = self(features, [s.boxes for s in sampled])
        losses = sampled_loss(self.bbox_head, logits, deltas, sampled, self.train_cfg or {})
        if self.mask_head is not None:
            head, extractor, size = self.mask_head, self.mask_roi_extractor, self.train_cfg['mask_size']
            losses.update(positives_mask_loss(head, extractor, features, sampled, positives, targets, size))
        return losses

    def predict(self, features: tuple[Tensor, ...], proposals: list[Tensor], metas: list[dict]) -> list[Detections]:
        """Detections of each picture, without masks."""
        logits, deltas = self(features, proposals)
        scores = logits.float().softmax(-1)[:, :-1]
        counts = [len(boxes) for boxes in proposals]
        return [
            detect(self.bbox_head.bbox_coder, *image, meta, self.test_cfg)
            for *image, meta in zip(proposals, scores.split(counts), deltas.split(counts), metas)
        ]

    def predict_masks(
        self, features: tuple[Tensor, ...], detections: list[Detections], metas: list[dict]
    ) -> list[list[dict]]:
        """One RLE of the original picture's size for each detection."""
        boxes = [scale_boxes(d.boxes, m['scale_factor']) for d, m in zip(detections, metas)]
        labels = torch.cat([d.labels for d in detections])
        probabilities = self.mask_head.predict(
            self.mask_head(self.mask_roi_extractor(features, to_rois(boxes))), labels
        )
        return masks_of(probabilities, detections, metas, self.test_cfg)
