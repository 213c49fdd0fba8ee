"""Losses on boxes themselves rather than on their deltas.

S pairs of boxes (S, 4), xyxy in pixels. Weights are (S,), or (S, 4) as for losses on deltas.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdet.config.errors import UserError
from mmdet.layers.losses.basic import check_pairs, check_reduction, weighted_mean
from mmdet.registry import MODELS


def _overlap(pred: Tensor, target: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """IoU and union of each pair, (S,)."""
    size = (torch.minimum(pred[:, 2:], target[:, 2:]) - torch.maximum(pred[:, :2], target[:, :2])).clamp(min=0)
    inter = size.prod(1)
    union = (pred[:, 2:] - pred[:, :2]).prod(1) + (target[:, 2:] - target[:, :2]).prod(1) - inter
    return inter / union.clamp(min=eps), union


def _hull(pred: Tensor, target: Tensor) -> Tensor:
    """Sides of the smallest box around each pair, (S, 2)."""
    return (torch.maximum(pred[:, 2:], target[:, 2:]) - torch.minimum(pred[:, :2], target[:, :2])).clamp(min=0)


def _centre_term(pred: Tensor, target: Tensor, eps: float) -> Tensor:
    """Squared distance of the centres over the squared diagonal of the hull, (S,)."""
    between = (pred[:, :2] + pred[:, 2:] - target[:, :2] - target[:, 2:]) / 2
    return between.square().sum(1) / _hull(pred, target).square().sum(1).clamp(min=eps)


class _BoxLoss(nn.Module):
    """Weighted mean of `per_box` over `avg_factor`.

    Args:
        eps: lower bound of a union or hull that is divided by, in square pixels, and of the IoU in a logarithm.
    """

    def __init__(self, eps: float = 1e-6, reduction: str = 'mean', loss_weight: float = 1.0):
        super().__init__()
        check_reduction(self, reduction)
        self.eps = eps
        self.loss_weight = loss_weight

    def per_box(self, pred: Tensor, target: Tensor) -> Tensor:
        """Loss (S,), or (S, 4), of each pair."""
        raise NotImplementedError

    def forward(
        self, pred: Tensor, target: Tensor, weight: Tensor | None = None, avg_factor: float | None = None
    ) -> Tensor:
        """Boxes (S, 4) and the ground truth (S, 4) that they should be. Of four weights of a box the mean counts.

        Raises:
            ValueError: shapes that do not fit each other.
        """
        check_pairs(pred, target)
        loss = self.per_box(pred.float(), target.float())
        if weight is not None and weight.shape == pred.shape and loss.dim() == 1:
            weight = weight.mean(1)
        return self.loss_weight * weighted_mean(loss, weight, avg_factor)


@MODELS.register_module()
class IoULoss(_BoxLoss):
    """-log IoU (UnitBox, arXiv 1608.01471), 1 - IoU (``mode='linear'``) or 1 - IoU^2 (``mode='square'``)."""

    def __init__(self, linear: bool = False, mode: str = 'log', **kwargs):
        super().__init__(**kwargs)
        self.mode = 'linear' if linear else mode
        if self.mode not in ('log', 'linear', 'square'):
            raise UserError(f"IoULoss: mode must be 'log', 'linear' or 'square', got {mode!r}")

    def per_box(self, pred: Tensor, target: Tensor) -> Tensor:
        iou = _overlap(pred, target, self.eps)[0].clamp(min=self.eps)
        if self.mode == 'log':
            return -iou.log()
        return 1 - (iou if self.mode == 'linear' else iou.square())


@MODELS.register_module()
class BoundedIoULoss(_BoxLoss):
    """Smooth L1 of 1 - IoU as each of x, y, w, h alone would leave it (arXiv 1711.00164, eq. 7-11).

    Args:
        beta: where the quadratic part ends.
    """

    def __init__(self, beta: float = 0.2, eps: float = 1e-3, **kwargs):
        super().__init__(eps=eps, **kwargs)
        self.beta = beta

    def per_box(self, pred: Tensor, target: Tensor) -> Tensor:
        size, target_size = pred[:, 2:] - pred[:, :2], (target[:, 2:] - target[:, :2]).detach()
        shift = (pred[:, :2] + pred[:, 2:] - target[:, :2] - target[:, 2:]).abs()  # twice the centres' distance
        centre = ((target_size - shift) / (target_size + shift + self.eps)).clamp(min=0)
        side = torch.minimum(target_size / (size + self.eps), size / (target_size + self.eps))
        miss = 1 - torch.cat([centre, side], dim=1)
        return F.smooth_l1_loss(miss, torch.zeros_like(miss), beta=self.beta, reduction='none')


@MODELS.register_module()
class GIoULoss(_BoxLoss):
    """1 - IoU + the part of the hull that neither box covers (arXiv 1902.09630)."""

    def per_box(self, pred: Tensor, target: Tensor) -> Tensor:
        iou, union = _overlap(pred, target, self.eps)
        hull = _hull(pred, target).prod(1).clamp(min=self.eps)
        return 1 - iou + (hull - union) / hull


@MODELS.register_module()
class DIoULoss(_BoxLoss):
    """1 - IoU + the centres' distance relative to the hull (arXiv 1911.08287)."""

    def per_box(self, pred: Tensor, target: Tensor) -> Tensor:
        return 1 - _overlap(pred, target, self.eps)[0] + _centre_term(pred, target, self.eps)


@MODELS.register_module()
class CIoULoss(_BoxLoss):
    """DIoU plus a term for the aspect ratio (arXiv 1911.08287, eq. 8-11); its weight carries no gradient.

    As in the authors' code and mmdetection, the term acts from an IoU of 0.5 on.
    """

    def per_box(self, pred: Tensor, target: Tensor) -> Tensor:
        iou = _overlap(pred, target, self.eps)[0]
        size, target_size = pred[:, 2:] - pred[:, :2], target[:, 2:] - target[:, :2]
        angle = torch.atan(size[:, 0] / (size[:, 1] + self.eps))
        target_angle = torch.atan(target_size[:, 0] / (target_size[:, 1] + self.eps))
        shape = (4 / math.pi**2) * (target_angle - angle).square()
        with torch.no_grad():
            trade_off = (iou > 0.5) * shape / (1 - iou + shape).clamp(min=self.eps)
        return 1 - iou + _centre_term(pred, target, self.eps) + trade_off * shape
