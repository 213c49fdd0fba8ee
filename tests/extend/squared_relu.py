"""An operator with its gradient, and the activation that uses it: relu(x)^2 (So et al. 2021)."""

import torch
from torch import Tensor, nn

from mmdet.registry import MODELS


@torch.library.custom_op('mine::squared_relu', mutates_args=())
def squared_relu(x: Tensor) -> Tensor:
    """relu(x)^2, elementwise, of any shape and floating dtype."""
    return x.relu() * x


@squared_relu.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _keep(ctx, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradient(ctx, grad: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    return grad * 2 * x.relu()


squared_relu.register_autograd(_gradient, setup_context=_keep)


@MODELS.register_module()
class SquaredReLU(nn.Module):
    """For ``act_cfg``."""

    def forward(self, x: Tensor) -> Tensor:
        return squared_relu(x)
