"""Focal loss of dense detectors.

S    samples (anchors of all pictures)
C    classes
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdet.config.errors import UserError
from mmdet.layers.losses.basic import check_reduction, weighted_mean
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
            raise UserError('FocalLoss: only use_sigmoid=True, activated=False is there')
        self.gamma = gamma
        self.alpha = alpha
        self.loss_weight = loss_weight

    def forward(
        self, logits: Tensor, target: Tensor, weight: Tensor | None = None, avg_factor: float | None = None
    ) -> Tensor:
        """Logits (S, C), labels (S,) with C for the background, weight (S,)."""
        logits = logits.float()
        weight = logits.new_ones(len(logits)) if weight is None else weight.float()
        total = _FocalSum.apply(logits, target, weight, self.gamma, self.alpha)
        return self.loss_weight * weighted_mean(total, None, logits.numel() if avg_factor is None else avg_factor)


class _FocalSum(torch.autograd.Function):
    """Sum of the loss. The forward pass finds the gradient too, so that only one array of the logits' size is kept."""

    @staticmethod
    def forward(ctx, logits: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
        row = (target < logits.shape[1]).nonzero().squeeze(1)
        column = target[row]
        own = logits[row, column]
        # As if no class were there, and then what the few that are there change.
        loss, slope = _unwanted(logits, gamma)
        own_loss, own_slope = _unwanted(-own, gamma)
        change = alpha * own_loss - (1 - alpha) * loss[row, column]
        # no matrix products: autocast would take them, and their result, to half precision
        total = (1 - alpha) * (weight * loss.sum(1)).sum() + (weight[row] * change).sum()
        slope *= 1 - alpha
        slope[row, column] = -alpha * own_slope
        slope *= weight[:, None]
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
