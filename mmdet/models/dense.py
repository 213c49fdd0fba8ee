"""What the heads that predict at every position of every level share.

N images, A anchors per position, K values per anchor, M = sum over levels of H_l * W_l * A.
"""

import torch
from torch import Tensor

from mmdet.structures import Target

TRAIN_KEYS = ('assigner', 'sampler', 'allowed_border', 'pos_weight', 'debug')
TEST_KEYS = ('nms_pre', 'nms', 'max_per_img', 'min_bbox_size')


def flatten_levels(maps: list[Tensor], values: int) -> Tensor:
    """[(N, A * K, H_l, W_l)] -> (N, M, K) with K = `values`, in the order of the anchors."""
    flat = [x.permute(0, 2, 3, 1).reshape(len(x), -1, values) for x in maps]
    return torch.cat(flat, dim=1)


def trained_anchors(anchors: Tensor, target: Target, allowed_border: float | None) -> Tensor:
    """Indices of the anchors (M, 4) that one picture trains.

    Args:
        allowed_border: None for all. A number leaves out those centred on the batch's padding beyond the picture's own
            (to a multiple of `pad_size_divisor`) and, unless negative, those that reach so many pixels out of it.
    """
    chosen = torch.ones(len(anchors), dtype=torch.bool, device=anchors.device)
    if allowed_border is not None:
        if target.pad_shape is not None:
            height, width = target.pad_shape
            centre = (anchors[:, :2] + anchors[:, 2:]) / 2
            chosen &= (centre < anchors.new_tensor([width, height]) - 0.5).all(1)  # by the corners: half a pixel's play
        if allowed_border >= 0:
            height, width = target.image_shape
            chosen &= (anchors[:, :2] >= -allowed_border).all(1)
            chosen &= (anchors[:, 2:] < anchors.new_tensor([width, height]) + allowed_border).all(1)
            if not chosen.any():
                raise ValueError(
                    f'no anchor lies inside a picture of {height} x {width} pixels with allowed_border='
                    f'{allowed_border}; use larger pictures or allowed_border=-1'
                )
    return chosen.nonzero().squeeze(1)


def sample_anchors(
    anchors: Tensor, target: Target, assigner, sampler, allowed_border: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the positive and the negative anchors (M, 4) trained on, and each positive's ground truth."""
    index = trained_anchors(anchors, target, allowed_border)
    matched, iou = assigner(anchors[index], target.boxes, target.ignored_boxes)
    positive, negative = sampler(matched, iou)
    return index[positive], index[negative], matched[positive]


def weight_positives(is_positive: Tensor, pos_weight: float) -> Tensor | None:
    """``train_cfg.pos_weight`` as weights (S,) of the classification loss; None where it is not set (negative or 0)."""
    if pos_weight <= 0:
        return None
    return torch.where(is_positive, float(pos_weight), 1.0)
