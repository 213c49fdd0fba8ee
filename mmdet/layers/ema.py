"""Averaged weights whose momentum begins large and falls (YOLOX, Ge et al. 2021)."""

import math

import torch
from mmengine.model import ExponentialMovingAverage
from torch import Tensor, nn

from mmdet.config.errors import UserError
from mmdet.registry import MODELS


@MODELS.register_module()
class ExpMomentumEMA(ExponentialMovingAverage):
    """An average that follows the weights closely at first: ``EMAHook(ema_type='ExpMomentumEMA')``.

    Its momentum after t updates is (1 - momentum) exp(-(1 + t) / gamma) + momentum.

    Args:
        momentum: the least, share of the new weights in the average.
        gamma: iterations in which the excess falls to 1/e.
        interval, device, update_buffers: mmengine's.

    Raises:
        UserError: gamma is not positive.
    """

    def __init__(
        self,
        model: nn.Module,
        momentum: float = 0.0002,
        gamma: int = 2000,
        interval: int = 1,
        device: torch.device | None = None,
        update_buffers: bool = False,
    ) -> None:
        super().__init__(model, momentum, interval, device, update_buffers)
        if gamma <= 0:
            raise UserError(f'ExpMomentumEMA: gamma={gamma}; a number above 0 is needed')
        self.gamma = gamma

    def avg_func(self, averaged_param: Tensor, source_param: Tensor, steps: int) -> None:
        momentum = (1 - self.momentum) * math.exp(-(1 + float(steps)) / self.gamma) + self.momentum
        averaged_param.lerp_(source_param, momentum)
