"""Filter Response Normalization (Singh and Krishnan 2020) for ``norm_cfg``."""

import torch
from torch import Tensor, nn

from mmdet.registry import MODELS


@MODELS.register_module()
class FilterResponseNorm(nn.Module):
    """Each channel of each image divided by the root mean square of its positions; no batch statistics.

    Built with the number of channels first, like every norm without groups.
    """

    def __init__(self, num_features: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        x = x * torch.rsqrt(x.square().mean((2, 3), keepdim=True) + self.eps)
        return x * self.weight[:, None, None] + self.bias[:, None, None]
