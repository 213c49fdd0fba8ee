"""mmdetection 3's `mmdet.models.losses`, for code that was written for it; ours are in `mmdet.layers.losses`."""

import functools
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from mmdet.config.absent import absent
from mmdet.config.errors import UserError
from mmdet.layers.losses import *  # noqa: F403
from mmdet.layers.losses import weighted_mean


def reduce_loss(loss: Tensor, reduction: str) -> Tensor:
    """'none', 'mean' or 'sum' of the elements."""
    if reduction not in ('none', 'mean', 'sum'):
        raise UserError(f"reduction={reduction!r} is none of 'none', 'mean', 'sum'")
    return loss if reduction == 'none' else getattr(loss, reduction)()


def weight_reduce_loss(
    loss: Tensor, weight: Tensor | None = None, reduction: str = 'mean', avg_factor: float | None = None
) -> Tensor:
    """Loss x weight, reduced; 'mean' divides by `avg_factor` where it is given."""
    if reduction == 'mean':
        return weighted_mean(loss, weight, avg_factor)
    if avg_factor is not None and reduction == 'sum':
        raise UserError("avg_factor goes with reduction='mean'")
    return reduce_loss(loss if weight is None else loss * weight, reduction)


def weighted_loss(loss_func: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A loss of each element becomes one with `weight`, `reduction` and `avg_factor`."""

    @functools.wraps(loss_func)
    def weighted(pred, target, weight=None, reduction='mean', avg_factor=None, **options):
        return weight_reduce_loss(loss_func(pred, target, **options), weight, reduction, avg_factor)

    return weighted


@weighted_loss
def l1_loss(pred: Tensor, target: Tensor) -> Tensor:
    return F.l1_loss(pred, target, reduction='none')


@weighted_loss
def mse_loss(pred: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(pred, target, reduction='none')


@weighted_loss
def smooth_l1_loss(pred: Tensor, target: Tensor, beta: float = 1.0) -> Tensor:
    return F.smooth_l1_loss(pred, target, reduction='none', beta=beta)


__path__: list[str] = []  # modules below it: see mmdet.moved
__getattr__ = absent(
    __name__,
    QualityFocalLoss='losses are nn.Modules in the registry MODELS; bring your own (docs/extend/head.md)',
    VarifocalLoss='losses are nn.Modules in the registry MODELS; bring your own (docs/extend/head.md)',
    accuracy='heads return losses alone; a metric counts on the validation set',
    sigmoid_focal_loss='use FocalLoss, or torchvision.ops.sigmoid_focal_loss',
)
