"""What the RoI heads of one stage and of several share.

N images, P proposals and G ground-truth boxes of an image, S sampled RoIs of an image and R of the batch, D detections
of an image, C classes (C itself is the background); boxes are xyxy in input pixels unless said otherwise.
"""

from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdet.config.contracts import must_have, on_first_call
from mmdet.models import contracts
from mmdet.models.detections import Detections, keep_best
from mmdet.models.roi_heads.mask_paste import resized_masks_to_rle
from mmdet.models.settings import weight_positives
from mmdet.models.task_modules.delta_xywh_bbox_coder import DeltaXYWHBBoxCoder
from mmdet.models.task_modules.protocols import Assigner, Sampler
from mmdet.ops import masks_to_rle
from mmdet.structures import Target
from mmdet.structures.boxes import unscale_boxes

TRAIN_KEYS = ('assigner', 'sampler', 'mask_size', 'pos_weight', 'debug')
TEST_KEYS = ('score_thr', 'nms', 'max_per_img', 'mask_thr_binary', 'min_bbox_size', 'mask_paste')
# What mmdetection's RoI heads have and ours do not, and what to override instead.
ELSEWHERE = dict(
    init_assigner_sampler='__init__',
    init_bbox_head='__init__',
    init_mask_head='__init__',
    _bbox_forward='forward',
    _mask_forward='loss and predict_masks',
    bbox_loss='loss',
    mask_loss='loss',
    predict_bbox='predict',
    predict_mask='predict_masks',
    _refine_roi='refine',
)


def needed_settings(cfg: dict) -> dict[str, tuple[str, ...]]:
    """Keys of train_cfg and test_cfg that a RoI head with this config has no default for."""
    masks = bool(cfg.get('mask_head'))
    return dict(
        train_cfg=('assigner', 'sampler', *(['mask_size'] if masks else [])),
        test_cfg=('score_thr', 'nms', 'max_per_img', *(['mask_thr_binary'] if masks else [])),
    )


def look_at_stage(
    extractors: tuple[nn.Module, ...], bbox_head: nn.Module, mask_head: nn.Module | None, train_cfg: dict | None
) -> None:
    """Let the parts of a RoI head, or of a stage, keep to what it counts on."""
    for extractor in extractors:
        on_first_call(extractor, 'forward', contracts.pooled)
    must_have(bbox_head, 'num_classes', 'bbox_coder', like='ConvFCBBoxHead')
    classes = bbox_head.num_classes
    on_first_call(bbox_head, 'forward', partial(contracts.classified, num_classes=classes))
    on_first_call(bbox_head, 'loss', contracts.losses)
    if mask_head is not None:
        must_have(mask_head, 'predict', like='FCNMaskHead')
        size = train_cfg and train_cfg.get('mask_size')
        on_first_call(mask_head, 'forward', partial(contracts.masked, num_classes=classes, size=size))
        on_first_call(mask_head, 'loss', contracts.losses)


def look_at_sampling(assigner: Assigner, sampler: Sampler) -> None:
    on_first_call(assigner, 'assign', contracts.assigned)
    must_have(sampler, 'add_gt_as_proposals', like='RandomSampler')
    on_first_call(sampler, 'sample', contracts.sampled)


class Sampled(NamedTuple):
    """RoIs of one image that are trained on, the `num_positive` positives first.

    boxes (S, 4), labels (S,), gt_boxes (S, 4), gt_index (S,): the matched ground truth, meaningless for negatives.
    """

    boxes: Tensor
    labels: Tensor
    gt_boxes: Tensor
    gt_index: Tensor
    num_positive: int


def sample_rois(
    assigner: Assigner,
    sampler: Sampler,
    proposals: Tensor,
    target: Target,
    num_classes: int,
    losses_of: Callable[[Tensor, Tensor], Tensor],
) -> Sampled:
    """Choose the proposals (P, 4) of an image to train on; the ground truth joins them if the sampler says so.

    `losses_of` gives the classification loss (B,) of boxes (B, 4) with labels (B,), to samplers that ask for it.
    """
    matched, iou = assigner.assign(proposals, target.boxes, target.ignored_boxes)
    if sampler.add_gt_as_proposals:  # afterwards: among the candidates each would be its own best match
        proposals = torch.cat([target.boxes, proposals])
        matched = torch.cat([torch.arange(len(target.boxes), device=matched.device), matched])
        iou = torch.cat([iou.new_ones(len(target.boxes)), iou])
    if getattr(sampler, 'needs_losses', False):
        labels = torch.full_like(matched, num_classes)
        labels[matched >= 0] = target.labels[matched[matched >= 0]]
        positive, negative = sampler.sample(matched, iou, losses_of(proposals, labels))
    else:
        positive, negative = sampler.sample(matched, iou)
    index = torch.cat([positive, negative])
    gt_index = matched[index].clamp(min=0)
    labels = torch.full_like(index, num_classes)
    labels[: len(positive)] = target.labels[gt_index[: len(positive)]]
    # An image without objects has no row to point to; its negatives' boxes are never read.
    gt_boxes = target.boxes[gt_index] if len(target.boxes) else torch.zeros_like(proposals[index])
    return Sampled(proposals[index], labels, gt_boxes, gt_index, len(positive))


def candidate_losses(
    forward: Callable[[list[Tensor]], tuple[Tensor, Tensor]], index: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """Classification loss (B,) of boxes (B, 4) of the image of that index with labels (B,), for `sample_rois`.

    `forward` gives the logits and deltas of the boxes of every image.
    """

    def losses_of(boxes: Tensor, labels: Tensor) -> Tensor:
        logits, _ = forward([*boxes.new_zeros(index, 0, 4), boxes])
        return F.cross_entropy(logits.float(), labels, reduction='none')

    return losses_of


def bbox_loss(
    bbox_head: nn.Module, logits: Tensor | None, deltas: Tensor | None, sampled: list[Sampled], train_cfg: dict
) -> dict:
    """The box head's losses of its outputs for all sampled RoIs, logits (R, C + 1), deltas (R, C or 1, 4) or None."""
    labels = torch.cat([s.labels for s in sampled])
    starts = accumulate((len(s.boxes) for s in sampled), initial=0)
    positive = [torch.arange(start, start + s.num_positive, device=labels.device) for start, s in zip(starts, sampled)]
    return bbox_head.loss(
        logits,
        deltas,
        boxes=torch.cat([s.boxes for s in sampled]),
        labels=labels,
        gt_boxes=torch.cat([s.gt_boxes for s in sampled]),
        positive=torch.cat(positive),
        weight=weight_positives(labels < bbox_head.num_classes, train_cfg.get('pos_weight', -1)),
    )


def split_or_none(rows: Tensor | None, counts: list[int]) -> list[Tensor | None]:
    """The rows (R, ...) of each image; None of each where a head does not have the output."""
    if rows is None:
        return [None] * len(counts)
    return [rows] if len(counts) == 1 else list(rows.split(counts))


def positives_on_host(sampled: list[Sampled]) -> tuple[Tensor, ...]:
    """The box of each positive RoI and the index of its ground truth, (P, 5) of each image.

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


def mask_loss(
    mask_head: nn.Module,
    pool: Callable[[list[Tensor]], Tensor],
    sampled: list[Sampled],
    positives: tuple[Tensor, ...],
    targets: list[Target],
    size: int,
) -> dict:
    """The mask head's loss on the positive RoIs; `positives` are those of `positives_on_host`.

    `pool` gives the RoI features (R, channels, S, S) of the boxes [(n_i, 4)] of each image.
    """
    boxes = [s.boxes[: s.num_positive] for s in sampled]
    labels = torch.cat([s.labels[: s.num_positive] for s in sampled])
    logits = mask_head(pool(boxes))
    # on the host, while a GPU computes the logits
    mask_targets = mask_targets_of(positives, targets, size, labels.device)
    return mask_head.loss(logits, labels, mask_targets)


def detect(
    bbox_coder: DeltaXYWHBBoxCoder, boxes: Tensor, scores: Tensor, deltas: Tensor | None, meta: dict, cfg: dict
) -> Detections:
    """Detections of one image from its RoIs' boxes (R, 4), scores (R, C) and deltas (R, C or 1, 4), or None.

    Pairs of RoI and class above ``score_thr`` go through per-class NMS; the best ``max_per_img`` remain.
    """
    row, labels = (scores > cfg['score_thr']).nonzero(as_tuple=True)
    if deltas is None:
        boxes = boxes[row]
    else:
        column = labels if deltas.shape[1] == scores.shape[1] else 0
        boxes = bbox_coder.decode(boxes[row], deltas[row, column].float(), meta['img_shape'][:2])
    # NMS acts on boxes in pixels of the original image, the ones that are evaluated.
    boxes, scores = unscale_boxes(boxes, meta['scale_factor']), scores[row, labels]
    if 'min_bbox_size' in cfg:
        large = (bbox_coder.sides(boxes) >= cfg['min_bbox_size']).all(dim=1).nonzero().squeeze(1)
        boxes, scores, labels = boxes[large], scores[large], labels[large]
    keep, scores = keep_best(boxes, scores, labels, cfg)
    return Detections(boxes[keep], scores, labels[keep])


def masks_of(probabilities: Tensor, detections: list[Detections], metas: list[dict], cfg: dict) -> list[list[dict]]:
    """Probabilities (D of all images, h, w) of the detections' masks as RLEs of each original image's size."""
    to_rle = resized_masks_to_rle if cfg.get('mask_paste') == 'resize' else masks_to_rle
    counts = [len(d.boxes) for d in detections]
    boxes = torch.cat([d.boxes for d in detections]).cpu().split(counts)
    return [
        to_rle(p, b, m['ori_shape'][:2], cfg['mask_thr_binary'])
        for p, b, m in zip(probabilities.cpu().split(counts), boxes, metas)
    ]
