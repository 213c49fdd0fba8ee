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
        hot = F.one_hot(target, logits.shape[-1] + 1)[..., :-1].to(logits.dtype)
        entropy = F.binary_cross_entropy_with_logits(logits, hot, reduction='none')
        score = logits.sigmoid()
        wrong = score + hot - 2 * score * hot  # 1 - p_t
        balance = self.alpha * hot + (1 - self.alpha) * (1 - hot)
        loss = balance * wrong**self.gamma * entropy
        return self.loss_weight * weighted_mean(loss, None if weight is None else weight[:, None], avg_factor)
