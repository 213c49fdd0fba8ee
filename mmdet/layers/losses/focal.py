"""Focal loss of dense detectors.

S    samples (anchors of all images)
C    classes
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdet.config.errors import UserError
from mmdet.layers.losses.basic import check_labels, check_reduction, fit_weight, weighted_mean
from mmdet.registry import MODELS


@MODELS.register_module()
class FocalLoss(nn.Module):
    """Sigmoid cross entropy, weighted down where the score is already right (RetinaNet, arXiv 1708.02002, eq. 5).

    Args:
        gamma: how strongly such scores are weighted down; 0 is plain cross entropy.
        alpha: weight of the positives of a class; its negatives have 1 - alpha.
    """

    use_sigmoid = True

    def __init__(
        self,
        use_sigmoid: bool = True,
        gamma: float = 2.0,
        alpha: float = 0.25,
        reduction: str = 'mean',
        loss_weight: float = 1.0,
        activated: bool = False,
    ):
        super().__init__()
        check_reduction(self, reduction)
        if not use_sigmoid or activated:
            raise UserError('FocalLoss: use_sigmoid=True, activated=False alone is supported')
        self.gamma = gamma
        self.alpha = alpha
        self.loss_weight = loss_weight

    def forward(
        self, logits: Tensor, target: Tensor, weight: Tensor | None = None, avg_factor: float | None = None
    ) -> Tensor:
        """Logits (S, C), labels (S,) with C for the background, weight (S,) or (S, C).

        Raises:
            ValueError: shapes that do not fit each other; labels beyond the classes.
        """
        if target.shape != logits.shape[:1]:
            raise ValueError(f'labels of shape {tuple(target.shape)} for logits of shape {tuple(logits.shape)}')
        check_labels(target, logits.shape[1])
        logits = logits.float()
        weight = logits.new_ones(len(logits)) if weight is None else weight.float()
        total = _FocalSum.apply(logits, target, fit_weight(weight, logits), self.gamma, self.alpha)
        return self.loss_weight * weighted_mean(total, None, logits.numel() if avg_factor is None else avg_factor)


class _FocalSum(torch.autograd.Function):
    """Sum of the loss. The forward pass finds the gradient too, so that only one array of the logits' size is kept."""

    @staticmethod
    def forward(ctx, logits: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
        """`weight` (S, 1) or (S, C)."""
        row = (target < logits.shape[1]).nonzero().squeeze(1)
        column = target[row]
        own = logits[row, column]
        # As if no class were there, and then the few that are there by themselves: a sum without them less their part
        # of it would leave the rounding errors of the large numbers.
        loss, slope = _unwanted(logits, gamma)
        own_loss, own_slope = _unwanted(-own, gamma)
        loss[row, column] = loss.new_zeros(())  # made where it is used
        per_class = weight.shape[1] == loss.shape[1]
        own_weight = weight[row, column if per_class else 0]
        negative = (loss.mul_(weight) if per_class else loss.sum(1, keepdim=True) * weight).sum()
        # no matrix products: autocast would take them, and their result, to half precision
        total = (1 - alpha) * negative + alpha * (own_weight * own_loss).sum()
        slope *= 1 - alpha
        slope[row, column] = -alpha * own_slope
        slope *= weight
        ctx.save_for_backward(slope)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        return ctx.saved_tensors[0] * grad, None, None, None, None


def _unwanted(logits: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Loss p^gamma softplus(x) of logits x whose score p should be 0, and its derivative."""
    score = logits.sigmoid()
    power = score**gamma
    loss = F.softplus(logits).mul_(power)
    steep = gamma * loss
    return loss, power.sub_(steep).mul_(score).add_(steep)
