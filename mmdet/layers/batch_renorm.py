"""Batch Renormalization (Ioffe, arXiv 1702.03275).

    N, C    images (or RoIs), channels
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from mmdet.layers.batch_stats import Normalize, batch_moments, compiled_for, track_running_stats
from mmdet.registry import MODELS


@MODELS.register_module()
class BatchRenorm(_NormBase):
    """BatchNorm2d that trains, within limits, on what it will use in eval mode: its running statistics.

    With the batch's mean m and deviation s (biased variance, eps inside the root, as in BatchNorm2d) and the
    running ones M and S::

        r = clip(s / S, 1 / r_max, r_max)      d = clip((m - M) / S, -d_max, d_max)
        out = gamma ((y - m) / s * r + d) + beta

    r and d are constants of the backward pass. For ``warmup_iters`` training forwards r = 1 and d = 0, which is
    BatchNorm2d; over the next ``ramp_iters`` the limits widen linearly to ``r_max`` and ``d_max``. The
    forwards are counted by ``num_batches_tracked``, so that resuming continues where it stopped. Buffers,
    state-dict keys, running statistics and eval mode are BatchNorm2d's. The defaults are the paper's
    (section 4; it ramps r over 35000 iterations, d over 20000).

    Raises:
        ValueError: for limits out of range, and in training mode for one value per channel.

    >>> layer = BatchRenorm(8, warmup_iters=0, ramp_iters=0)
    >>> layer(torch.rand(2, 8, 4, 4)).shape
    torch.Size([2, 8, 4, 4])
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.01,
        affine: bool = True,
        r_max: float = 3.0,
        d_max: float = 5.0,
        warmup_iters: int = 5000,
        ramp_iters: int = 20000,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats=True)
        if r_max < 1 or d_max < 0:
            raise ValueError(f'BatchRenorm: r_max={r_max!r} must be at least 1 and d_max={d_max!r} at least 0')
        if warmup_iters < 0 or ramp_iters < 0:
            raise ValueError(f'BatchRenorm: {warmup_iters=} and {ramp_iters=} must not be negative')
        self.r_max, self.d_max = r_max, d_max
        self.warmup_iters, self.ramp_iters = warmup_iters, ramp_iters

    def extra_repr(self) -> str:
        return (
            f'{super().extra_repr()}, r_max={self.r_max}, d_max={self.d_max}, '
            f'warmup_iters={self.warmup_iters}, ramp_iters={self.ramp_iters}'
        )

    def forward(self, y: Tensor) -> Tensor:
        """Normalise y (N, C, ...)."""
        if y.dim() not in (2, 3, 4, 5) or y.shape[1] != self.num_features:
            raise ValueError(f'BatchRenorm: input of shape {tuple(y.shape)} does not have {self.num_features} channels')
        if not self.training or y.numel() == 0:  # no RoI: nothing to learn from, but a connected graph
            return F.batch_norm(y, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        batch = batch_moments(y.detach())
        if batch.count == 1:
            raise ValueError(f'BatchRenorm: one value per channel (input {tuple(y.shape)}) has no variance to train '
                             'on: larger images, more in a batch, or GN')
        scale, shift = self._correction(batch.mean, batch.var)
        track_running_stats(self, batch)
        if self.affine:
            scale, shift = self.weight * scale, self.weight * shift + self.bias
        if compiled_for(y):
            return Normalize.apply(y, batch.mean, batch.var, scale, shift, self.eps, 1, batch.count, None)
        return F.batch_norm(y, None, None, scale, shift, True, 0.0, self.eps)

    @torch.no_grad()
    def _correction(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """r and d, both (C,)."""
        # Tensors throughout: reading the counter on the host would wait for the GPU.
        passed = self.num_batches_tracked - self.warmup_iters
        widened = (passed / max(self.ramp_iters, 1)).clamp(0, 1) if self.ramp_iters else (passed >= 0).float()
        r_max, d_max = 1 + (self.r_max - 1) * widened, self.d_max * widened
        running = (self.running_var + self.eps).sqrt()
        r = torch.clamp((var + self.eps).sqrt() / running, 1 / r_max, r_max)
        d = torch.clamp((mean - self.running_mean) / running, -d_max, d_max)
        return r.to(running.dtype), d.to(running.dtype)
