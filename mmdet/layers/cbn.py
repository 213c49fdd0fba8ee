"""Cross-Iteration Batch Normalization (arXiv 2002.05712): batch statistics pooled over past iterations.

    N, C, M     pictures (or RoIs); output channels; positions of one batch, M = N * H * W
    G, K        groups of the convolution; weights of one output channel, K = C_in / G * kh * kw
    S           past batches held, at most ``buffer_num``;  n = S + 1 entries in the window

A convolution's output is linear in its weight, so what a past batch would give *under today's weight* is
known without its pictures: the mean exactly, the variance to first order (equations 5 to 8 of the paper).
A past batch is held as its mean and variance, their derivatives with respect to the weight and the two
products of derivative and weight of its time; past weights are not needed.

Variances are held centred, where the paper holds second moments: with D the change of the weight,

    mean'  =  mean + rho <dmean/dw, D>
    var'   =  var + rho <dvar/dw, D> - (rho <dmean/dw, D>)^2,  at least 0

is the paper's ``max(nu', mean'^2) - mean'^2`` for ``nu = var + mean^2``, without the loss of all digits
where the mean is large against the deviation.

This file needs torch alone.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _NormBase


class Window(NamedTuple):
    """Past batches, the newest first."""

    dmean: Tensor  # (S, G, K): equal for all channels of a group where the closed form holds, else G = C
    dvar: Tensor  # (S, C, K)
    scalars: Tensor  # (S, 4, C): mean, var, <dmean, w>, <dvar, w> with the weight of the time

    def pushed(self, newest: 'Window', size: int) -> 'Window':
        if self.dmean.shape[1:] != newest.dmean.shape[1:] or self.dvar.shape[1:] != newest.dvar.shape[1:]:
            return newest  # the caller changed between closed forms and autograd: start again
        return Window(*(torch.cat([new, old[: size - 1]]) for new, old in zip(newest, self)))


def _dot_mean(dmean: Tensor, w: Tensor) -> Tensor:
    """<dmean, w> per channel: (S, G, K), (C, K) -> (S, C)."""
    groups = dmean.shape[1]
    return torch.einsum('sgk,gck->sgc', dmean, w.view(groups, -1, w.shape[1])).flatten(1)


def _dot_var(dvar: Tensor, w: Tensor) -> Tensor:
    """<dvar, w> per channel: (S, C, K), (C, K) -> (S, C)."""
    return torch.einsum('sck,ck->sc', dvar, w)


def compensate(window: Window, weight: Tensor, rho: float, compensation: str) -> tuple[Tensor, Tensor]:
    """Means and variances, both (S, C), that the window's batches would give under ``weight``."""
    w = weight.detach().flatten(1).to(window.dvar.dtype)
    mean, var, dmean_w, dvar_w = window.scalars.unbind(1)
    shift = rho * (_dot_mean(window.dmean, w) - dmean_w)
    change = rho * (_dot_var(window.dvar, w) - dvar_w)
    result = var + change - shift.square()
    if compensation == 'root':  # sqrt(nu) is a norm of w: nu' = nu (1 + dnu / (2 nu))^2
        dnu = change + 2 * mean * shift
        nu = var + mean.square()
        result = result + dnu.square() / (4 * nu).clamp(min=torch.finfo(nu.dtype).tiny)
    return mean + shift, result.clamp(min=0)


def pool(mean: Tensor, var: Tensor, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Statistics of the current batch (C,) and the past ones (S, C), each batch counted once."""
    means = torch.cat([mean[None], means])
    pooled = means.mean(0)
    within = torch.cat([var[None], variances]).mean(0)
    return pooled, within + (means - pooled).square().mean(0)


# -- derivatives of the current batch's statistics ----------------------------------------------------


def _pair(value) -> tuple[int, int]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def _has_closed_form(conv: nn.Module) -> bool:
    if isinstance(conv, nn.Linear):
        return True
    return isinstance(conv, nn.Conv2d) and conv.padding_mode == 'zeros' and not isinstance(conv.padding, str)


def _tap_counts(
    size: int, out: int, k: int, stride: int, padding: int, dilation: int, like: Tensor
) -> Tensor:
    """(k, size): how often tap i of the kernel falls on position j, 0 or 1."""
    first = torch.arange(k, device=like.device)[:, None] * dilation - padding
    steps = torch.arange(size, device=like.device) - first
    hit = (steps >= 0) & (steps % stride == 0) & (steps < out * stride)
    return hit.to(like.dtype)


def mean_patch(x: Tensor, y: Tensor, conv: nn.Module, dtype: torch.dtype) -> Tensor:
    """Mean input patch (G, K) under the convolution's window, the derivative of every channel's mean.

    A window sum is an inner product of the map with 0/1 vectors along both axes, so that stride, padding and
    dilation are all the same case.
    """
    if isinstance(conv, nn.Linear):
        return x.flatten(0, -2).mean(0, dtype=dtype)[None]
    total = x.sum(0, dtype=dtype)
    geometry = zip(x.shape[2:], y.shape[2:], conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    rows, cols = (_tap_counts(*axis, like=total) for axis in geometry)
    patch = (rows @ (total @ cols.t())) / (y.numel() // y.shape[1])
    return patch.reshape(conv.groups, -1)


def moment_slope(x: Tensor, centred: Tensor, conv: nn.Module) -> Tensor:
    """d var / d w times M / 2: the weight gradient (C, K) of ``conv`` for the output gradient y - mean."""
    if isinstance(conv, nn.Linear):
        return centred.flatten(0, -2).t() @ x.flatten(0, -2)
    return torch.ops.aten.convolution_backward(
        centred, x, conv.weight, None, conv.stride, conv.padding, conv.dilation, False, [0, 0], conv.groups,
        [False, True, False],
    )[1].flatten(1)  # fmt: skip


class _Normalize(torch.autograd.Function):
    """gamma (y - mean) / sqrt(var + eps) + beta, where 1/n of mean and var comes from y itself.

    The gradient is BatchNorm's with its two mean terms divided by n:
    dy = gamma r (g - (sum g + y^ sum(g y^)) / (n M)).
    """

    @staticmethod
    def forward(ctx, y, mean, var, weight, bias, eps, count, group):
        ctx.save_for_backward(y, mean, var, weight)
        ctx.eps, ctx.count, ctx.group = eps, count, group
        return F.batch_norm(y, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        y, mean, var, weight = ctx.saved_tensors
        shape = (1, -1) + (1,) * (y.dim() - 2)
        dims = [d for d in range(y.dim()) if d != 1]
        rstd = torch.rsqrt(var + ctx.eps)
        g = grad.to(mean.dtype)
        y_hat = (y.to(mean.dtype) - mean.view(shape)) * rstd.view(shape)
        sum_g, sum_gy = g.sum(dims), (g * y_hat).sum(dims)
        grad_weight = grad_bias = grad_y = None
        if weight is not None:
            grad_weight, grad_bias = sum_gy.to(weight.dtype), sum_g.to(weight.dtype)
        if ctx.needs_input_grad[0]:
            if ctx.group is not None:
                both = torch.stack([sum_g, sum_gy])
                dist.all_reduce(both, group=ctx.group)
                sum_g, sum_gy = both
            scale = rstd if weight is None else rstd * weight.to(mean.dtype)
            inner = g - (sum_g.view(shape) + y_hat * sum_gy.view(shape)) / ctx.count
            grad_y = (scale.view(shape) * inner).to(y.dtype)
        return grad_y, None, None, grad_weight, grad_bias, None, None, None


def process_group(wanted: bool):
    """The group to pool statistics over, or None where there is one process."""
    if wanted and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return dist.group.WORLD
    return None


def batch_moments(y: Tensor, group=None) -> tuple[Tensor, Tensor, float]:
    """Mean and biased variance (C,) of this batch over all processes of ``group``, and its positions M.

    At least float32, whatever the type of y.
    """
    dims = [d for d in range(y.dim()) if d != 1]
    count = y.numel() // y.shape[1]
    if group is None:
        mean, var = torch.ops.aten.batch_norm_update_stats(y, None, None, 0.0)
        return mean, var, count
    wide = y.double() if y.dtype == torch.float64 else y.float()
    if count:
        var, mean = torch.var_mean(wide, dims, correction=0)
    else:
        mean = var = wide.new_zeros(y.shape[1])
    # Sums in float64: the mean's square is subtracted again.
    mean64, var64 = mean.double(), var.double()
    sums = torch.cat([mean64 * count, (var64 + mean64.square()) * count, mean64.new_tensor([count])])
    dist.all_reduce(sums, group=group)
    total = sums[-1].item()
    first, second = (sums[:-1] / max(total, 1)).chunk(2)
    return first.to(wide.dtype), (second - first.square()).clamp(min=0).to(wide.dtype), total


class CrossIterBatchNorm2d(_NormBase):
    """BatchNorm2d whose training statistics are pooled over the last ``buffer_num + 1`` iterations.

    Buffers, state-dict keys, running statistics (of the current batch alone) and eval mode are BatchNorm2d's.
    Training mode needs the weight that produced y; with ``conv`` and its input ``x`` the derivatives
    come from closed forms, otherwise from two autograd passes through y's graph. The numbers are the same.

    Args:
        buffer_num: past batches pooled; 0 is BatchNorm2d.
        burnin: epochs during which the layer is BatchNorm2d. Somebody must tell the layer the epoch: the
            Runner's ``CBNHook``, or ``set_cbn_epoch``.
        burnin_iters: training forwards during which the layer is BatchNorm2d.
        rho: strength of the compensation; 0 pools past statistics as they were.
        compensation: ``'taylor'`` (the paper) or ``'root'``: first order of the root of the second moment.
        derivative_fraction: share of the positions from which the variance's derivative is taken.
        sync: pool each batch's statistics over all processes.

    Raises:
        ValueError: for an option out of range, and in training mode for a missing weight, for a y that does
            not depend on it, or for one value per channel.

    The layer derives from BatchNorm's base class but not from ``_BatchNorm``, because
    ``SyncBatchNorm.convert_sync_batchnorm`` (``sync_bn=`` of a config) replaces any ``_BatchNorm`` silently.

    >>> conv, norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), CrossIterBatchNorm2d(8)
    >>> x = torch.rand(2, 3, 32, 32)
    >>> norm(conv(x), conv.weight).shape, norm.after(conv, x).shape
    (torch.Size([2, 8, 32, 32]), torch.Size([2, 8, 32, 32]))
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        buffer_num: int = 3,
        burnin: int | None = None,
        burnin_iters: int = 0,
        rho: float = 1.0,
        compensation: str = 'taylor',
        derivative_fraction: float = 1.0,
        sync: bool = False,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        if not isinstance(buffer_num, int) or buffer_num < 0:
            raise ValueError(f'CBN: buffer_num={buffer_num!r} must be an integer of at least 0')
        if compensation not in ('taylor', 'root'):
            raise ValueError(f"CBN: compensation={compensation!r} must be 'taylor' or 'root'")
        if not 0 < derivative_fraction <= 1:
            raise ValueError(f'CBN: derivative_fraction={derivative_fraction!r} must lie in (0, 1]')
        if burnin_iters < 0 or (burnin or 0) < 0:
            raise ValueError(f'CBN: burnin={burnin!r} and burnin_iters={burnin_iters!r} must not be negative')
        self.buffer_num = buffer_num
        self.burnin = burnin
        self.burnin_iters = burnin_iters
        self.rho = rho
        self.compensation = compensation
        self.derivative_fraction = derivative_fraction
        self.sync = sync
        # Plain attributes: as buffers they would be published, broadcast by DDP and averaged over processes.
        self.window: Window | None = None
        self.steps = 0  # training forwards with gradient
        self.epoch: int | None = None

    @property
    def burning_in(self) -> bool:
        return self.steps < self.burnin_iters or bool(self.burnin and (self.epoch or 0) < self.burnin)

    def extra_repr(self) -> str:
        return (
            f'{super().extra_repr()}, buffer_num={self.buffer_num}, burnin={self.burnin}, '
            f'burnin_iters={self.burnin_iters}, rho={self.rho}, compensation={self.compensation}, '
            f'derivative_fraction={self.derivative_fraction}, sync={self.sync}'
        )

    def _apply(self, fn, recurse: bool = True):
        super()._apply(fn, recurse)
        if self.window is not None:
            self.window = Window(*(fn(part) for part in self.window))
        return self

    def _check_input_dim(self, y: Tensor) -> None:
        if y.dim() not in (2, 3, 4, 5) or y.shape[1] != self.num_features:
            raise ValueError(
                f'CBN: input of shape {tuple(y.shape)} does not have {self.num_features} channels'
            )

    def after(self, conv: nn.Module, x: Tensor) -> Tensor:
        """``self(conv(x))`` with derivatives in closed form."""
        return self(conv(x), conv=conv, x=x)

    def forward(
        self,
        y: Tensor,
        weight: Tensor | None = None,
        *,
        conv: nn.Module | None = None,
        x: Tensor | None = None,
    ) -> Tensor:
        """Normalise y (N, C, H, W), or (N, C), the output of ``weight`` (C, ...) or of ``conv`` at ``x``."""
        self._check_input_dim(y)
        if not self.training:
            current_only = self.running_mean is None
            return F.batch_norm(
                y, self.running_mean, self.running_var, self.weight, self.bias, current_only, 0.0, self.eps
            )
        group = process_group(self.sync)
        if y.numel() == 0 and group is None:
            # No RoI: nothing to learn from, but a connected graph.
            zero, one = y.new_zeros(y.shape[1]), y.new_ones(y.shape[1])
            return F.batch_norm(y, zero, one, self.weight, self.bias, False, 0.0, self.eps)
        mean, var, count = batch_moments(y.detach(), group)
        if count == 1:
            raise ValueError(
                f'CBN: one value per channel (input {tuple(y.shape)}) has no variance to train on'
            )
        self._track(mean, var, count)
        entries = 1
        if torch.is_grad_enabled() and self.burning_in:
            self.steps += 1
        elif self.buffer_num and not self.burning_in:
            mean, var, entries = self._pool(
                y, mean, var, count, conv.weight if weight is None else weight, conv, x
            )
        return _Normalize.apply(y, mean, var, self.weight, self.bias, self.eps, entries * count, group)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, count: float) -> None:
        if self.running_mean is None:
            return
        self.num_batches_tracked.add_(1)
        rate = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), rate)
        self.running_var.lerp_((var * (count / (count - 1))).to(self.running_var.dtype), rate)

    def _pool(self, y, mean, var, count, weight, conv, x):
        current = None
        if torch.is_grad_enabled():
            with torch.no_grad():
                current = self._entry(y, mean, var, count, weight, conv, x)
            self.steps += 1
        past = self.window
        if current is not None:
            self.window = current if past is None else past.pushed(current, self.buffer_num)
        if past is None:
            return mean, var, 1
        with torch.no_grad():
            return *pool(mean, var, *compensate(past, weight, self.rho, self.compensation)), past.dvar.shape[
                0
            ] + 1

    def _entry(self, y, mean, var, count, weight, conv, x) -> Window:
        if conv is not None and x is not None and _has_closed_form(conv):
            shape = (1, -1) + (1,) * (y.dim() - 2)
            dmean = mean_patch(x, y, conv, mean.dtype)
            dvar = moment_slope(x.to(y.dtype), y - mean.view(shape).to(y.dtype), conv).to(mean.dtype) * (
                2 / count
            )
        else:
            dmean, dvar = self._derivatives_by_autograd(y, mean, weight)
        w = weight.detach().flatten(1).to(mean.dtype)
        scalars = torch.cat([mean[None], var[None], _dot_mean(dmean[None], w), _dot_var(dvar[None], w)])
        return Window(dmean[None], dvar[None], scalars[None])

    def _derivatives_by_autograd(self, y: Tensor, mean: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        if not weight.requires_grad:  # frozen: it never differs from itself
            zeros = torch.zeros_like(weight, dtype=mean.dtype).flatten(1)
            return zeros, zeros
        if not y.requires_grad:
            raise ValueError('CBN: y does not depend on the given weight; pass the weight that produced it')
        dims = [d for d in range(y.dim()) if d != 1]
        with torch.enable_grad():
            wide = y.to(mean.dtype)
            first = wide.mean(dims)
            second = (wide - first.detach().view((1, -1) + (1,) * (y.dim() - 2))).square().mean(dims)
            (dmean,) = torch.autograd.grad(first.sum(), weight, retain_graph=True)
            (dvar,) = torch.autograd.grad(second.sum(), weight, retain_graph=True)
        return dmean.flatten(1).to(mean.dtype), dvar.flatten(1).to(mean.dtype)
