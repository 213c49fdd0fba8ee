"""Losses named in configs. All are weighted sums divided by `avg_factor`, so a head says once what it averages over.

S samples, C classes.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from mmdet.registry import MODELS


def weighted_mean(loss: Tensor, weight: Tensor | None, avg_factor: float | None) -> Tensor:
    """Sum of `loss` x `weight` over `avg_factor` (default: the number of elements). Empty input gives 0, connected."""
    if weight is not None:
        loss = loss * weight
    return loss.sum() / max(loss.numel() if avg_factor is None else avg_factor, 1)


@MODELS.register_module()
class CrossEntropyLoss(nn.Module):
    """Softmax, sigmoid or mask cross entropy.

    - default: logits (S, C + 1), integer labels (S,), background last;
    - ``use_sigmoid``: logits (S, C), labels (S,) integer (C means background) or float targets like the logits;
    - ``use_mask``: logits (S, h, w) of the true class, targets (S, h, w) in [0, 1].

    ``class_weight`` holds one factor per logit column.
    """

    def __init__(
        self,
        use_sigmoid: bool = False,
        use_mask: bool = False,
        loss_weight: float = 1.0,
        class_weight: list[float] | None = None,
    ):
        super().__init__()
        if use_sigmoid and use_mask:
            raise ValueError('CrossEntropyLoss: use_sigmoid and use_mask exclude each other; set one of them')
        self.use_sigmoid = use_sigmoid
        self.use_mask = use_mask
        self.loss_weight = loss_weight
        self.class_weight = class_weight

    def forward(
        self, logits: Tensor, target: Tensor, weight: Tensor | None = None, avg_factor: float | None = None
    ) -> Tensor:
        class_weight = None if self.class_weight is None else logits.new_tensor(self.class_weight)
        if self.use_sigmoid or self.use_mask:
            if target.dim() < logits.dim():
                target = F.one_hot(target, logits.shape[-1] + 1)[..., :-1]
                weight = None if weight is None else weight[..., None]
            loss = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), class_weight, reduction='none')
        else:
            loss = F.cross_entropy(logits, target, class_weight, reduction='none')
        return self.loss_weight * weighted_mean(loss, weight, avg_factor)


@MODELS.register_module()
class SmoothL1Loss(nn.Module):
    """Quadratic below `beta`, linear above (Fast R-CNN, eq. 3): inputs of equal shape."""

    def __init__(self, beta: float = 1.0, loss_weight: float = 1.0):
        super().__init__()
        self.beta = beta
        self.loss_weight = loss_weight

    def forward(
        self, pred: Tensor, target: Tensor, weight: Tensor | None = None, avg_factor: float | None = None
    ) -> Tensor:
        loss = F.smooth_l1_loss(pred, target, beta=self.beta, reduction='none')
        return self.loss_weight * weighted_mean(loss, weight, avg_factor)


@MODELS.register_module()
class L1Loss(nn.Module):
    """Absolute difference: inputs of equal shape."""

    def __init__(self, loss_weight: float = 1.0):
        super().__init__()
        self.loss_weight = loss_weight

    def forward(
        self, pred: Tensor, target: Tensor, weight: Tensor | None = None, avg_factor: float | None = None
    ) -> Tensor:
        return self.loss_weight * weighted_mean((pred - target).abs(), weight, avg_factor)
