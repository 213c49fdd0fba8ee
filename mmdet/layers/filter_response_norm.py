"""Filter Response Normalization with its activation (Singh and Krishnan, arXiv 1911.09737).

    N, C, H, W    images (or RoIs), channels, height, width
"""

import torch
from torch import Tensor, nn

from mmdet.layers.batch_stats import per_channel
from mmdet.registry import MODELS


@MODELS.register_module()
class TLU(nn.Module):
    """``max(y, tau)``, tau (C,) learned: ReLU with a threshold per channel."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.tau = nn.Parameter(torch.zeros(num_features))

    def forward(self, y: Tensor) -> Tensor:
        """(N, C, ...) -> the same shape."""
        return torch.maximum(y, per_channel(self.tau.to(y.dtype), y))


@MODELS.register_module('FRN')
class FilterResponseNorm2d(nn.Module):
    """gamma y / sqrt(E[y^2] + |eps|) + beta, the mean over the H W positions of one channel of one image.

    No batch statistics, no buffers: training and eval mode are the same. In a `ConvModule` with an activation `TLU`
    stands in the activation's place, as in the paper; elsewhere (ResNet's residual sums) the layer is followed by what
    the block has.

    Args:
        learnable_eps: eps is a parameter per channel, which the paper advises for maps of 1 x 1 (from 1e-4 there).

    >>> FilterResponseNorm2d(8)(torch.rand(2, 8, 4, 4)).shape
    torch.Size([2, 8, 4, 4])
    """

    activation = TLU

    def __init__(self, num_features: int, eps: float = 1e-6, learnable_eps: bool = False) -> None:
        super().__init__()
        if eps <= 0:
            raise ValueError(f'FRN: {eps=} must be above 0')
        self.num_features = num_features
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.eps = nn.Parameter(torch.full((num_features,), float(eps))) if learnable_eps else eps

    def extra_repr(self) -> str:
        return f'{self.num_features}, eps=' + ('learned' if isinstance(self.eps, Tensor) else str(self.eps))

    def forward(self, y: Tensor) -> Tensor:
        """Normalise y (N, C, H, W); computed in float32."""
        if y.dim() < 3 or y.shape[1] != self.num_features:
            raise ValueError(f'FRN: input of shape {tuple(y.shape)} is not (N, {self.num_features}, H, W)')
        wide = y.to(torch.promote_types(y.dtype, torch.float32))
        mean_square = wide.square().mean(tuple(range(2, y.dim())), keepdim=True)
        eps = per_channel(self.eps.abs(), y) if isinstance(self.eps, Tensor) else self.eps
        scale = per_channel(self.weight, y) * (mean_square + eps).rsqrt()
        return (wide * scale + per_channel(self.bias, y)).to(y.dtype)
