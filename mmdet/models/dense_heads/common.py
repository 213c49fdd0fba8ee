"""What the heads that predict at every position of every level share.

N images, H_l and W_l of a level, A anchors per position, K values per anchor, M = sum over levels of H_l * W_l * A,
C classes; boxes are xyxy in pixels.
"""

import torch
from torch import Tensor, nn

from mmdet.config.contracts import must_have, on_first_call
from mmdet.config.errors import UserError
from mmdet.models import contracts
from mmdet.models.detections import Detections, keep_best, number_kept
from mmdet.models.task_modules.delta_xywh_bbox_coder import DeltaXYWHBBoxCoder
from mmdet.models.task_modules.protocols import IGNORED, Assigner, Sampler
from mmdet.structures import Target
from mmdet.structures.boxes import unscale_boxes

FAR_AWAY = -1e6  # pixels
TRAIN_KEYS = ('assigner', 'sampler', 'allowed_border', 'pos_weight', 'debug')
TEST_KEYS = ('nms_pre', 'nms', 'max_per_img', 'min_bbox_size')
PROPOSAL_KEYS = (*TEST_KEYS, 'nms_across_levels')  # of an RPN
# What mmdetection's dense heads have and ours do not, and what to override instead.
ELSEWHERE = dict(
    _init_layers='__init__',
    forward_single='forward',
    get_anchors='forward',
    get_targets='sample',
    _get_targets_single='sample',
    loss_by_feat='loss',
    loss_by_feat_single='loss',
    loss_and_predict='loss and predict',
    predict_by_feat='predict',
    get_bboxes='predict',
    _get_bboxes_single='predict',
    aug_test='predict',
    simple_test='predict',
    forward_train='loss',
    _predict_by_feat_single='predict',
    _bbox_post_process='predict',
)


def look_at_parts(head: nn.Module) -> None:
    """Let the losses, the coder, the assigner and the sampler of a dense head keep to what it counts on."""
    must_have(head.bbox_coder, 'compared', 'decode', 'clip', 'sides', like='DeltaXYWHBBoxCoder')
    for name in ('loss_cls', 'loss_bbox'):
        if hasattr(head, name):  # SSD's losses are no parts
            on_first_call(getattr(head, name), 'forward', contracts.loss)
    if head.train_cfg:
        on_first_call(head.assigner, 'assign', contracts.assigned)
        on_first_call(head.sampler, 'sample', contracts.sampled)


def flatten_levels(maps: list[Tensor], values: int) -> Tensor:
    """[(N, A * K, H_l, W_l)] -> (N, M, K) with K = `values`, in the order of the anchors."""
    # all positions first, their values last; only `cat` copies
    return torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1).reshape(len(maps[0]), -1, values)


def trained_anchors(anchors: Tensor, target: Target, allowed_border: float | None) -> Tensor | None:
    """Which anchors (M, 4) one image trains, (M,) bool; None for all.

    Args:
        allowed_border: None for all. A number leaves out those centred on the batch's padding beyond the image's own
            (to a multiple of `pad_size_divisor`) and, unless negative, those that reach so many pixels out of it.
    """
    if allowed_border is None or (allowed_border < 0 and target.pad_shape is None):
        return None
    left, top, right, bottom = anchors.unbind(1)
    trained = torch.ones_like(left, dtype=torch.bool)
    if target.pad_shape is not None:
        height, width = target.pad_shape
        # centred by the corners: half a pixel's play
        trained &= (left + right < 2 * width - 1) & (top + bottom < 2 * height - 1)
    if allowed_border >= 0:
        height, width = target.image_shape
        trained &= (left >= -allowed_border) & (right < width + allowed_border)
        trained &= (top >= -allowed_border) & (bottom < height + allowed_border)
    return trained


def sample_anchors(
    anchors: Tensor, target: Target, assigner: Assigner, sampler: Sampler, allowed_border: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the positive and the negative anchors (M, 4) trained on, and each positive's ground truth.

    Raises:
        UserError: `allowed_border` leaves no anchor.
    """
    trained = trained_anchors(anchors, target, allowed_border)
    if trained is None:
        matched, iou = assigner.assign(anchors, target.boxes, target.ignored_boxes)
    else:  # the others go far away, where they overlap nothing; to select the trained ones would wait for a GPU
        anchors = anchors.where(trained[:, None], FAR_AWAY)
        matched, iou = assigner.assign(anchors, target.boxes, target.ignored_boxes)
        matched = matched.where(trained, IGNORED)
    positive, negative = sampler.sample(matched, iou)
    # asked last, and rarely: the host waits for the answer
    if trained is not None and allowed_border >= 0 and not len(positive) + len(negative) and not trained.any():
        height, width = target.image_shape
        raise UserError(
            f'no anchor lies inside an image of {height} x {width} pixels with allowed_border={allowed_border}; use '
            'larger images or allowed_border=-1'
        )
    return positive, negative, matched[positive]


def batch_rows(rows: list[Tensor], num_anchors: int) -> Tensor:
    """Each image's rows of its M = `num_anchors` anchors as rows of the batch's N * M, one image after another."""
    return torch.cat([index * num_anchors + r for index, r in enumerate(rows)])


def best_pairs(
    values: Tensor, threshold: float, sizes: list[int], nms_pre: int = -1
) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs of anchor and class whose value is above `threshold`, of each level the best `nms_pre`.

    Args:
        values: (M, C), growing with the score.
        sizes: anchors of each level.

    Returns:
        of B pairs: values, anchors and labels, (B,) each.
    """
    best, index, start = [], [], 0
    for size in sizes:
        level = values[start : start + size].flatten()
        candidates = (level > threshold).nonzero().squeeze(1)
        level_best, order = level[candidates].topk(number_kept(nms_pre, candidates.shape[0]))
        best.append(level_best)
        index.append(candidates[order] + start * values.shape[1])
        start += size
    index = torch.cat(index)
    return torch.cat(best), index // values.shape[1], index % values.shape[1]


def detections_of(
    coder: DeltaXYWHBBoxCoder, anchors: Tensor, deltas: Tensor, scores: Tensor, labels: Tensor, meta: dict, cfg: dict
) -> Detections:
    """Detections of one image from B candidates: anchors and deltas (B, 4), scores and labels (B,).

    They are clipped to the image, brought to its original pixels, and go through NMS there.
    """
    boxes = coder.decode(anchors, deltas.float(), meta['img_shape'][:2])
    boxes = unscale_boxes(boxes, meta['scale_factor'])
    min_size = cfg.get('min_bbox_size', 0)
    if min_size >= 0:
        large = (coder.sides(boxes) > min_size).all(dim=1).nonzero().squeeze(1)
        boxes, scores, labels = boxes[large], scores[large], labels[large]
    keep, scores = keep_best(boxes, scores, labels, cfg)
    return Detections(boxes[keep], scores, labels[keep])
