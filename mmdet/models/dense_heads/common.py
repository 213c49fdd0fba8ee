"""What the heads that predict at every position of every level share.

N images, A anchors per position, K values per anchor, M = sum over levels of H_l * W_l * A.
"""

import torch
from torch import Tensor

from mmdet.config.errors import UserError
from mmdet.models.task_modules.assigners import IGNORED
from mmdet.structures import Target

FAR_AWAY = -1e6  # pixels
TRAIN_KEYS = ('assigner', 'sampler', 'allowed_border', 'pos_weight', 'debug')
TEST_KEYS = ('nms_pre', 'nms', 'max_per_img', 'min_bbox_size')


def flatten_levels(maps: list[Tensor], values: int) -> Tensor:
    """[(N, A * K, H_l, W_l)] -> (N, M, K) with K = `values`, in the order of the anchors."""
    # all positions first, their values last; only `cat` copies
    return torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1).reshape(len(maps[0]), -1, values)


def trained_anchors(anchors: Tensor, target: Target, allowed_border: float | None) -> Tensor | None:
    """Which anchors (M, 4) one picture trains, (M,) bool; None for all.

    Args:
        allowed_border: None for all. A number leaves out those centred on the batch's padding beyond the picture's own
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
    anchors: Tensor, target: Target, assigner, sampler, allowed_border: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the positive and the negative anchors (M, 4) trained on, and each positive's ground truth."""
    trained = trained_anchors(anchors, target, allowed_border)
    if trained is None:
        matched, iou = assigner(anchors, target.boxes, target.ignored_boxes)
    else:  # the others go far away, where they overlap nothing; to select the trained ones would wait for a GPU
        anchors = anchors.where(trained[:, None], FAR_AWAY)
        matched, iou = assigner(anchors, target.boxes, target.ignored_boxes)
        matched = matched.where(trained, IGNORED)
    positive, negative = sampler(matched, iou)
    # asked last, and rarely: the host waits for the answer
    if trained is not None and allowed_border >= 0 and not len(positive) + len(negative) and not trained.any():
        height, width = target.image_shape
        raise UserError(
            f'no anchor lies inside a picture of {height} x {width} pixels with allowed_border={allowed_border}; use '
            'larger pictures or allowed_border=-1'
        )
    return positive, negative, matched[positive]


def batch_rows(rows: list[Tensor], num_anchors: int) -> Tensor:
    """Each picture's rows of its M = `num_anchors` anchors as rows of the batch's N * M, one picture after another."""
    return torch.cat([image * num_anchors + r for image, r in enumerate(rows)])


def number_kept(limit: int, count: int) -> int:
    """How many of `count` to keep for ``nms_pre`` or ``max_per_img``: all where `limit` is 0 or negative."""
    return min(limit, count) if limit > 0 else count


def weight_positives(is_positive: Tensor, pos_weight: float) -> Tensor | None:
    """``train_cfg.pos_weight`` as weights (S,) of the classification loss; None where it is not set (negative or 0)."""
    if pos_weight <= 0:
        return None
    return torch.where(is_positive, float(pos_weight), 1.0)
