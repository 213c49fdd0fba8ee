"""Losses named in configs. All are weighted sums divided by `avg_factor`, so a head says once what it averages over.

S samples, C classes. Weights have the loss's shape, or (S,): one for each sample.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdet.config.errors import UserError
from mmdet.config.overrides import refuse_overrides
from mmdet.registry import MODELS


def weighted_mean(loss: Tensor, weight: Tensor | None, avg_factor: float | None) -> Tensor:
    """Sum of `loss` x `weight` over `avg_factor` (default: the number of elements). Empty input gives 0, connected.

    Raises:
        ValueError: `weight` has neither the shape of `loss` nor its first axes.
    """
    if weight is not None:
        loss = loss * fit_weight(weight, loss)
    return loss.sum() / max(loss.numel() if avg_factor is None else avg_factor, 1)


def fit_weight(weight: Tensor, loss: Tensor) -> Tensor:
    """`weight` with as many axes as `loss`, which has its shape or begins with it."""
    if weight.shape != loss.shape[: weight.dim()]:
        raise ValueError(f'weight of shape {tuple(weight.shape)} for a loss of shape {tuple(loss.shape)}')
    return weight.reshape(weight.shape + (1,) * (loss.dim() - weight.dim()))


def check_pairs(pred: Tensor, target: Tensor) -> None:
    """Refuse shapes that PyTorch would broadcast to pairs of other boxes.

    Raises:
        ValueError: names both shapes.
    """
    if pred.shape != target.shape:
        raise ValueError(f'prediction of shape {tuple(pred.shape)} for a target of shape {tuple(target.shape)}')


def check_labels(labels: Tensor, num_classes: int, but: int = 0) -> None:
    """Refuse labels (S,) outside of 0, ..., `num_classes`, other than `but`.

    On a GPU, whose values the host would wait for, it is the detectors that look at the annotations before they are
    sent there.

    Raises:
        ValueError: names the labels.
    """
    if labels.device.type == 'cpu' and labels.numel():
        low, high = labels.where(labels != but, 0).aminmax()
        if low < 0 or high > num_classes:
            raise ValueError(f'labels from {low} to {high}: of {num_classes} classes they are 0 to {num_classes - 1}, '
                             f'and {num_classes} is the background')


def check_reduction(loss: nn.Module, reduction: str) -> None:
    """Configs may say ``reduction='mean'``; the heads know nothing else to do with a loss.

    Raises:
        UserError: anything else.
    """
    if reduction != 'mean':
        raise UserError(
            f"{type(loss).__name__}: reduction={reduction!r} is not possible, the heads average; "
            "use 'mean' and loss_weight"
        )


@MODELS.register_module()
@refuse_overrides('extend/head.md', get_activation='forward', get_accuracy='forward', get_cls_channels='forward')
class CrossEntropyLoss(nn.Module):
    """Softmax, sigmoid or mask cross entropy.

    - default: logits (S, C + 1), integer labels (S,), background last;
    - ``use_sigmoid``: logits (S, C), labels (S,) integer (C means background) or float targets like the logits;
    - ``use_mask``: logits (S, h, w) of the true class, targets (S, h, w) in [0, 1].

    ``class_weight`` holds one factor per logit column; with ``use_sigmoid`` it applies where the target is 1.
    """

    def __init__(
        self,
        use_sigmoid: bool = False,
        use_mask: bool = False,
        reduction: str = 'mean',
        class_weight: list[float] | None = None,
        ignore_index: int | None = None,
        loss_weight: float = 1.0,
        avg_non_ignore: bool = False,
    ):
        super().__init__()
        check_reduction(self, reduction)
        if use_sigmoid and use_mask:
            raise UserError('CrossEntropyLoss: use_sigmoid and use_mask exclude each other; set one of them')
        if ignore_index not in (None, -100) or avg_non_ignore:
            raise UserError(
                'CrossEntropyLoss: ignore_index and avg_non_ignore have no use here, detectors leave samples out'
            )
        self.use_sigmoid = use_sigmoid
        self.use_mask = use_mask
        self.loss_weight = loss_weight
        self.class_weight = class_weight

    def forward(
        self, logits: Tensor, target: Tensor, weight: Tensor | None = None, avg_factor: float | None = None
    ) -> Tensor:
        """Mean over `avg_factor` of what the class says; weight (S,), or of the logits' shape with sigmoid or mask.

        Raises:
            ValueError: shapes that do not fit each other; labels beyond the classes.
        """
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # autocast leaves bfloat16 on CPUs
        class_weight = None if self.class_weight is None else logits.new_tensor(self.class_weight)
        if self.use_sigmoid or self.use_mask:
            if target.dim() < logits.dim():
                check_labels(target, logits.shape[-1])
                target = F.one_hot(target, logits.shape[-1] + 1)[..., :-1]
            check_pairs(logits, target)
            loss = F.binary_cross_entropy_with_logits(
                logits, target.to(logits.dtype), pos_weight=class_weight, reduction='none'
            )
        else:
            if target.dim() < logits.dim():
                check_labels(target, logits.shape[1] - 1, but=-100)  # torch's ignore_index
            loss = F.cross_entropy(logits, target, class_weight, reduction='none')
        return self.loss_weight * weighted_mean(loss, weight, avg_factor)


class _DeltaLoss(nn.Module):
    """Weighted mean of `elementwise` of inputs of equal shape, over `avg_factor`."""

    def __init__(self, reduction: str = 'mean', loss_weight: float = 1.0):
        super().__init__()
        check_reduction(self, reduction)
        self.loss_weight = loss_weight

    def elementwise(self, pred: Tensor, target: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(
        self, pred: Tensor, target: Tensor, weight: Tensor | None = None, avg_factor: float | None = None
    ) -> Tensor:
        """Predictions and targets of one shape, weight of that shape or (S,).

        Raises:
            ValueError: shapes that do not fit each other.
        """
        check_pairs(pred, target)
        return self.loss_weight * weighted_mean(self.elementwise(pred, target), weight, avg_factor)


@MODELS.register_module()
class SmoothL1Loss(_DeltaLoss):
    """Quadratic below `beta`, linear above (Fast R-CNN, eq. 3)."""

    def __init__(self, beta: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.beta = beta

    def elementwise(self, pred: Tensor, target: Tensor) -> Tensor:
        return F.smooth_l1_loss(pred, target, beta=self.beta, reduction='none')


@MODELS.register_module()
class L1Loss(_DeltaLoss):
    """Absolute difference."""

    def elementwise(self, pred: Tensor, target: Tensor) -> Tensor:
        return (pred - target).abs()


@MODELS.register_module()
class BalancedL1Loss(_DeltaLoss):
    """L1 whose gradient, alpha log(b |x| / beta + 1), grows faster near 0 (Libra R-CNN, arXiv 1904.02701, eq. 8-9).

    Args:
        alpha: how much the small errors gain.
        gamma: the gradient from `beta` on.
    """

    def __init__(self, alpha: float = 0.5, gamma: float = 1.5, beta: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.alpha, self.gamma, self.beta = alpha, gamma, beta

    def elementwise(self, pred: Tensor, target: Tensor) -> Tensor:
        error = (pred - target).abs()
        b = math.expm1(self.gamma / self.alpha)
        near = self.alpha / b * (b * error + 1) * (b * error / self.beta).log1p() - self.alpha * error
        far = self.gamma * error + self.gamma / b - self.alpha * self.beta
        return torch.where(error < self.beta, near, far)
