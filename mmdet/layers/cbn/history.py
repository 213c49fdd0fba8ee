"""The past batches: what their statistics would be under today's weight, pooled with the current batch's.

    mean'  =  mean + <dmean, D>                              D: the weight's change since then, times rho
    var'   =  var + <dvar, D> - <dmean, D>^2,  at least 0

The paper holds second moments nu = var + mean^2 and takes max(nu', mean'^2) - mean'^2. This is the same number
without the loss of all digits where the mean is large against the deviation.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..batch_stats import Moments
from .derivatives import ConvCall


class Pooled(NamedTuple):
    """Mean and variance (C,) over ``entries`` batches, the current one included.

    dmean (G, K) and dvar (C, K): how they change with the weight by the past batches, where the gradient needs that.
    """

    batch: Moments  # the current one alone
    mean: Tensor
    var: Tensor
    entries: int | Tensor
    dmean: Tensor | None = None
    dvar: Tensor | None = None


class History:
    """The last batches in a ring: their statistics as functions of the weight. No past weight is held.

    dmean is (G, S, K) and dvar (C, S, K); K = 0 where nothing is compensated. values is (4, C, S): mean, var, and
    where the lines through them with these derivatives meet weight 0.
    """

    TENSORS = 'dmean', 'dvar', 'values'

    def __init__(self, size: int, shape: tuple[int, int, int], like: Tensor) -> None:
        """``shape``: that of a batch's derivatives; ``like``: a tensor of the history's device."""
        groups, rows, width = shape
        channels, dtype = groups * (rows - 1), torch.promote_types(like.dtype, torch.float32)
        self.dmean = like.new_zeros(groups, size, width, dtype=dtype)
        self.dvar = like.new_zeros(channels, size, width, dtype=dtype)
        self.values = like.new_zeros(4, channels, size, dtype=dtype)
        self.filled = 0
        self.slot = 0  # the next batch's

    def fits(self, shape: tuple[int, int, int]) -> bool:
        groups, rows, width = shape
        return self.dmean.shape[::2] == (groups, width) and len(self.dvar) == groups * (rows - 1)

    def add(self, batch: Moments, call: ConvCall, derivatives: Tensor) -> None:
        mean, var = call.without_bias(batch.mean), batch.var
        derivatives, weight = derivatives.to(mean.dtype), call.rows(mean.dtype)[:, : derivatives.shape[2]]
        dmean, dvar = derivatives[:, -1], derivatives[:, :-1].flatten(0, 1)
        self.dmean[:, self.slot], self.dvar[:, self.slot] = dmean, dvar
        at_zero = [_linear(value[:, None], d[:, None], weight, -1) for value, d in ((mean, dmean), (var, dvar))]
        self.values[:, :, self.slot] = torch.stack([mean, var, *(value[:, 0] for value in at_zero)])
        self.advance()

    def advance(self) -> None:
        self.slot = (self.slot + 1) % self.dvar.shape[1]
        self.filled = min(self.filled + 1, self.dvar.shape[1])

    def estimate(self, weight: Tensor, rho: float, compensation: str) -> tuple[Tensor, Tensor]:
        """Means and variances, both (C, S), that the past batches would have with ``weight`` (C, K)."""
        mean, var, mean_at_0, var_at_0 = self.values[..., : self.filled].unbind()
        if not self.dvar.shape[2]:
            return mean, var
        now_mean = _linear(mean_at_0, self.dmean[:, : self.filled], weight)
        now_var = _linear(var_at_0, self.dvar[:, : self.filled], weight)
        if rho != 1:
            now_mean, now_var = mean.lerp(now_mean, rho), var.lerp(now_var, rho)
        shift = now_mean - mean
        if compensation == 'root':  # sqrt(nu) is a norm of w: nu' = nu (1 + dnu / (2 nu))^2
            dnu, nu = (now_var - var).addcmul(mean, shift, value=2), var.addcmul(mean, mean)
            now_var = now_var.addcdiv(dnu.square(), nu.clamp(min=torch.finfo(nu.dtype).tiny), value=0.25)
        return now_mean, now_var.addcmul(shift, shift, value=-1).clamp(min=0)

    def gradient(self, estimate: tuple[Tensor, Tensor], own: Tensor, rho: float, compensation: str):
        """Derivatives of the pooled mean (G, K) and variance (C, K) by the past batches' ``estimate``; ``own`` (C,) is
        the current batch's mean."""
        mean, var = self.values[:2, :, : self.filled]
        dmean, dvar = self.dmean[:, : self.filled], self.dvar[:, : self.filled]
        now_mean, now_var = estimate
        kept = (now_var > 0).to(var.dtype)
        stretch = kept
        if compensation == 'root':  # 1 + dnu / (2 nu)
            nu = var.addcmul(mean, mean).clamp(min=torch.finfo(var.dtype).tiny)
            stretch = kept * (now_var.addcmul(now_mean, now_mean) / nu).sqrt()
        pooled = (own + now_mean.sum(1)) / (self.filled + 1)
        by_mean = 2 * (now_mean - pooled[:, None] + stretch * mean - kept * now_mean)
        by_mean = (by_mean.unflatten(0, (len(dmean), -1)) @ dmean).flatten(0, 1)
        by_var = (stretch[:, None] @ dvar)[:, 0]
        share = rho / (self.filled + 1)
        return dmean.sum(1) * share, (by_mean + by_var) * share

    def to(self, fn) -> None:
        """Move with the layer, but stay at least float32."""
        for name in self.TENSORS:
            moved = fn(getattr(self, name))
            setattr(self, name, moved.to(torch.promote_types(moved.dtype, torch.float32)))

    def state(self) -> dict:
        tensors = {name: getattr(self, name).cpu().clone() for name in self.TENSORS}
        return dict(tensors, filled=self.filled, slot=self.slot)

    @classmethod
    def from_state(cls, state: dict, device: torch.device) -> 'History':
        history = cls.__new__(cls)
        for name in cls.TENSORS:
            setattr(history, name, state[name].to(device, copy=True))
        history.filled, history.slot = state['filled'], state['slot']
        return history


def _linear(start: Tensor, slope: Tensor, weight: Tensor, sign: int = 1) -> Tensor:
    """start (C, S) + sign <slope (G, S, K), weight (C, K)>, (C, S); channels of a group share their slope."""
    grouped = (len(slope), -1)
    return torch.baddbmm(
        start.unflatten(0, grouped), weight.unflatten(0, grouped), slope.transpose(1, 2), alpha=sign
    ).flatten(0, 1)


def pool(
    history: History | None, batch: Moments, call: ConvCall, derivatives: Tensor | None,
    rho: float, compensation: str, full_gradient: bool,
) -> Pooled:  # fmt: skip
    """Pool ``batch`` with the past ones, each counted once, and add it to the history if it has derivatives.

    ``kernels.pool`` is the same by one compiled operator. The convolution's bias shifts every batch alike and is left
    out of the history.
    """
    mean, var, entries, found = batch.mean, batch.var, 1, ()
    if history is not None and history.filled:
        entries += history.filled
        own, weight = call.without_bias(mean), call.rows(mean.dtype)
        past = history.estimate(weight, rho, compensation)
        if full_gradient and history.dvar.shape[2]:
            found = history.gradient(past, own, rho, compensation)
        mean, var = pool_moments(own, var, *past)
        if call.bias is not None:
            mean = mean + call.bias
    if derivatives is not None:
        history.add(batch, call, derivatives)
    return Pooled(batch, mean, var, entries, *found)


def pool_moments(mean: Tensor, var: Tensor, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Of the current batch (C,) and the past ones (C, S) together."""
    between, pooled = torch.var_mean(torch.cat([mean[:, None], means], 1), 1, correction=0)
    return pooled, torch.cat([var[:, None], variances], 1).mean(1) + between


class PooledOf(torch.autograd.Function):
    """The pooled mean and variance as functions of the weight by the past batches: ``full_gradient``."""

    @staticmethod
    def forward(ctx, weight, mean, var, dmean, dvar):
        # No saved tensors, which activation checkpointing would make anew when the history has moved on.
        ctx.derivatives = dmean, dvar, weight.shape, weight.dtype
        return mean.view_as(mean), var.view_as(var)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_mean, grad_var):
        dmean, dvar, shape, dtype = ctx.derivatives
        by_mean = (grad_mean.view(len(dmean), -1, 1) * dmean[:, None]).flatten(0, 1)
        return (by_mean + grad_var[:, None] * dvar).view(shape).to(dtype), None, None, None, None
