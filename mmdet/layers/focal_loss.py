"""Focal loss of dense detectors. S samples, C classes."""

import torch.nn.functional as F
from torch import Tensor, nn

from mmdet.layers.losses import check_reduction, weighted_mean
from mmdet.registry import MODELS


@MODELS.register_module()
class FocalLoss(nn.Module):
    """Sigmoid cross entropy, weighted down where the score is already right (RetinaNet, arXiv 1708.02002, eq. 5).

    Args:
        gamma: how strongly.
        alpha: weight of the class itself; 1 - alpha that of its absence.
    """

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
            raise ValueError('FocalLoss: only use_sigmoid=True, activated=False is there')
        self.gamma = gamma
        self.alpha = alpha
        self.loss_weight = loss_weight

    def forward(
        self, logits: Tensor, target: Tensor, weight: Tensor | None = None, avg_factor: float | None = None
    ) -> Tensor:
        """Logits (S, C), labels (S,) with C for the background, weight (S,)."""
        logits = logits.float()
        weight = logits.new_ones(len(logits)) if weight is None else weight
        # As if no class were there, and then what the few that are there change.
        loss = (self._term(logits, 1 - self.alpha) * weight[:, None]).sum()
        row = (target < logits.shape[1]).nonzero().squeeze(1)
        own = logits[row, target[row]]
        loss = loss + ((self._term(-own, self.alpha) - self._term(own, 1 - self.alpha)) * weight[row]).sum()
        return self.loss_weight * weighted_mean(loss, None, logits.numel() if avg_factor is None else avg_factor)

    def _term(self, logits: Tensor, balance: float) -> Tensor:
        """Of scores that should be 0."""
        return balance * logits.sigmoid() ** self.gamma * F.softplus(logits)
