"""Moving Average Batch Normalization (Yan et al., arXiv 2001.06838).

    N, C, M    images (or RoIs); channels; values per channel, N H W
    m          batches in the window
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmdet.layers.batch_stats import per_channel
from mmdet.registry import MODELS


@MODELS.register_module('MABN')
class MovingAverageBatchNorm2d(nn.Module):
    """Batch normalisation without a mean, whose two remaining statistics are averages over the last m batches.

    With the root mean square X_t = sqrt(E[y^2] + eps) over batch t (its square averaged over the window: W_t) and the
    moving average R of W::

        z = y / W_t      r = clip(W_t / R, 1 / r_max, r_max)      out = gamma r z + beta
        dL/dy = (g - z P_t) / W_t,      g = dL/dz,      P_t = the window's average of E[g z]

    r is a constant of the backward pass. Subtracting no mean makes eval mode one scale per channel. The paper keeps
    outputs centred by the convolution before: ``conv_cfg=dict(type='CenConv2d')``. The first ``warmup_iters`` training
    forwards take the batch's own statistics, and r = 1 in the first ``renorm_iters``, as in the authors' release, whose
    defaults these are. Each training forward counts as a batch and its backward pass must follow: activation
    checkpointing, which repeats the forward, would count it twice.

    >>> MovingAverageBatchNorm2d(8)(torch.rand(2, 8, 4, 4)).shape
    torch.Size([2, 8, 4, 4])
    """

    _abbr_ = 'bn'

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.02,
        buffer_size: int = 16,
        warmup_iters: int = 100,
        renorm_iters: int = 1000,
        r_max: float = 5.0,
    ) -> None:
        super().__init__()
        if buffer_size < 1 or warmup_iters < 0 or r_max < 1:
            raise ValueError(f'MABN: {buffer_size=} and {r_max=} must be at least 1, {warmup_iters=} at least 0')
        self.num_features, self.eps, self.momentum, self.buffer_size = num_features, eps, momentum, buffer_size
        self.warmup_iters, self.renorm_iters, self.r_max = max(warmup_iters, buffer_size - 1), renorm_iters, r_max
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer('running_var', torch.ones(num_features))  # of W^2
        self.register_buffer('squares', torch.zeros(buffer_size, num_features))  # E[y^2] of the last batches
        self.register_buffer('products', torch.zeros(buffer_size, num_features))  # E[g z] of the last batches
        self.register_buffer('num_batches_tracked', torch.tensor(0))

    def extra_repr(self) -> str:
        return (
            f'{self.num_features}, eps={self.eps}, momentum={self.momentum}, buffer_size={self.buffer_size}, '
            f'warmup_iters={self.warmup_iters}, renorm_iters={self.renorm_iters}, r_max={self.r_max}'
        )

    def forward(self, y: Tensor) -> Tensor:
        """Normalise y (N, C, ...)."""
        if y.dim() < 2 or y.shape[1] != self.num_features:
            raise ValueError(f'MABN: input of shape {tuple(y.shape)} does not have {self.num_features} channels')
        if not self.training or y.numel() == 0:  # no RoI: nothing to learn from, but a connected graph
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            return (y * per_channel(scale, y) + per_channel(self.bias, y)).to(y.dtype)
        mean_square, r, slot, full = self._track(y)
        z = _Divide.apply(y, (mean_square + self.eps).sqrt(), self.products, slot, full)
        return (z * per_channel(self.weight * r, y) + per_channel(self.bias, y)).to(y.dtype)

    @torch.no_grad()
    def _track(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """W^2 and r, both (C,); the batch's place in the window (1,); whether the window counts yet (1,)."""
        # Tensors throughout: reading the counter on the host would wait for the GPU.
        slot = (self.num_batches_tracked % self.buffer_size).view(1)
        full = (self.num_batches_tracked >= self.warmup_iters).view(1)
        own = _mean(y.to(self.running_var.dtype).square())
        self.squares.index_copy_(0, slot, own[None])
        mean_square = torch.where(full, self.squares.mean(0), own)
        ratio = ((mean_square + self.eps) / (self.running_var + self.eps)).sqrt().clamp(1 / self.r_max, self.r_max)
        r = torch.where(self.num_batches_tracked >= self.renorm_iters, ratio, torch.ones_like(ratio))
        self.running_var.lerp_(mean_square, self.momentum)
        self.num_batches_tracked.add_(1)
        return mean_square, r, slot, full


class _Divide(torch.autograd.Function):
    """y / W, with the average of E[g z] over the window in the place of the batch's own in the gradient."""

    @staticmethod
    def forward(ctx, y: Tensor, rms: Tensor, products: Tensor, slot: Tensor, full: Tensor) -> Tensor:
        z = y.to(rms.dtype) / per_channel(rms, y)
        ctx.save_for_backward(z, rms, slot, full)
        ctx.products, ctx.dtype = products, y.dtype
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple:
        z, rms, slot, full = ctx.saved_tensors
        own = _mean(grad * z)
        ctx.products.index_copy_(0, slot, own[None])
        product = torch.where(full, ctx.products.mean(0), own)
        grad = (grad - z * per_channel(product, z)) / per_channel(rms, z)
        return grad.to(ctx.dtype), *[None] * 4


def _mean(y: Tensor) -> Tensor:
    """(N, C, ...) -> (C,)."""
    return y.transpose(0, 1).flatten(1).mean(1)
