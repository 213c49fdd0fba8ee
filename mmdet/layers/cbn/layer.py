"""Cross-Iteration Batch Normalization (arXiv 2002.05712): batch statistics pooled over past iterations.

    N, C, M     pictures (or RoIs); output channels; positions of one batch, M = N * H * W
    G, K        groups of the convolution; weights of one output channel, K = C_in / G * kh * kw
    S           past batches held, at most ``buffer_num``;  n = S + 1 entries in the window

A convolution's output is linear in its weight, so what a past batch would give *under today's weight* is
known without its pictures: the mean exactly, the variance to first order (equations 5 to 8 of the paper).
A past batch is held as its mean and variance, and the straight lines that both follow as the weight changes; past
weights are not needed.

Variances are held centred, where the paper holds second moments: with D the change of the weight,

    mean'  =  mean + rho <dmean/dw, D>
    var'   =  var + rho <dvar/dw, D> - (rho <dmean/dw, D>)^2,  at least 0

is the paper's ``max(nu', mean'^2) - mean'^2`` for ``nu = var + mean^2``, without the loss of all digits
where the mean is large against the deviation.

This file needs torch alone, and can be copied into another project as it is.
"""

import itertools
import math
import warnings
import weakref
from collections import deque
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _NormBase

# -- the window ---------------------------------------------------------------------------------------


class Window:
    """The last batches in a ring: their statistics as functions of the weight.

    dmean is (G, S, K), equal for all channels of a group where the convolution is a plain one, and else G = C;
    dvar is (C, S, K); K = 0 where nothing is compensated. values is (4, C, S): mean, var, and where the lines with
    these slopes through them meet weight 0. A new batch brings its slopes as one tensor (G, C / G + 1, K), the dvar of
    each group's channels and then their dmean.
    """

    def __init__(self, size: int, slopes: tuple[int, int, int], like: Tensor) -> None:
        """``slopes``: their shape; ``like``: a tensor of the window's device."""
        groups, rows, width = slopes
        channels, dtype = groups * (rows - 1), torch.promote_types(like.dtype, torch.float32)
        self.dmean = like.new_zeros(groups, size, width, dtype=dtype)
        self.dvar = like.new_zeros(channels, size, width, dtype=dtype)
        self.values = like.new_zeros(4, channels, size, dtype=dtype)
        self.filled = 0
        self.slot = 0

    def fits(self, slopes: tuple[int, int, int]) -> bool:
        groups, rows, width = slopes
        return self.dmean.shape[::2] == (groups, width) and len(self.dvar) == groups * (rows - 1)

    def push(self, mean: Tensor, var: Tensor, slopes: Tensor, weight: Tensor) -> None:
        """Enter a batch with statistics (C,), their slopes, and its weight (C, K)."""
        slopes, weight = slopes.to(mean.dtype), weight[:, : slopes.shape[2]]
        dmean, dvar = slopes[:, -1], slopes[:, :-1].flatten(0, 1)
        self.dmean[:, self.slot], self.dvar[:, self.slot] = dmean, dvar
        origins = [_line(value[:, None], d[:, None], weight, -1) for value, d in ((mean, dmean), (var, dvar))]
        self.values[:, :, self.slot] = torch.stack([mean, var, *(origin[:, 0] for origin in origins)])
        self.advance()

    def advance(self) -> None:
        self.slot = (self.slot + 1) % self.dvar.shape[1]
        self.filled = min(self.filled + 1, self.dvar.shape[1])

    def under(self, weight: Tensor, rho: float, compensation: str) -> tuple[Tensor, Tensor]:
        """Means and variances, both (C, S), that the batches held would give with ``weight`` (C, K)."""
        mean, var, mean_0, var_0 = self.values[..., : self.filled].unbind()
        if not self.dvar.shape[2]:
            return mean, var
        now_mean = _line(mean_0, self.dmean[:, : self.filled], weight)
        now_var = _line(var_0, self.dvar[:, : self.filled], weight)
        if rho != 1:
            now_mean, now_var = mean.lerp(now_mean, rho), var.lerp(now_var, rho)
        shift = now_mean - mean
        if compensation == 'root':  # sqrt(nu) is a norm of w: nu' = nu (1 + dnu / (2 nu))^2
            dnu, nu = (now_var - var).addcmul(mean, shift, value=2), var.addcmul(mean, mean)
            now_var = now_var.addcdiv(dnu.square(), nu.clamp(min=torch.finfo(nu.dtype).tiny), value=0.25)
        return now_mean, now_var.addcmul(shift, shift, value=-1).clamp(min=0)

    def gradient(self, weight: Tensor, rho: float, compensation: str, own: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives of the pooled mean (G, K) and variance (C, K) with respect to ``weight``, by the past batches;
        ``own`` (C,) is the current batch's mean."""
        mean, var = self.values[:2, :, : self.filled]
        dmean, dvar = self.dmean[:, : self.filled], self.dvar[:, : self.filled]
        now_mean, now_var = self.under(weight, rho, compensation)
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
        for name in ('dmean', 'dvar', 'values'):
            moved = fn(getattr(self, name))
            setattr(self, name, moved.to(torch.promote_types(moved.dtype, torch.float32)))

    def state(self) -> dict:
        tensors = {name: getattr(self, name).cpu().clone() for name in ('dmean', 'dvar', 'values')}
        return dict(tensors, filled=self.filled, slot=self.slot)

    @classmethod
    def from_state(cls, state: dict, device: torch.device) -> 'Window':
        window = cls.__new__(cls)
        for name in ('dmean', 'dvar', 'values'):
            setattr(window, name, state[name].to(device, copy=True))
        window.filled, window.slot = state['filled'], state['slot']
        return window


def _line(start: Tensor, slope: Tensor, weight: Tensor, sign: int = 1) -> Tensor:
    """start (C, S) + sign <slope (G, S, K), weight (C, K)>, (C, S); channels of a group share their slope."""
    grouped = (len(slope), -1)
    return torch.baddbmm(
        start.unflatten(0, grouped), weight.unflatten(0, grouped), slope.transpose(1, 2), alpha=sign
    ).flatten(0, 1)


# -- derivatives of the current batch's statistics ----------------------------------------------------


class Geometry(NamedTuple):
    """What a convolution does to positions; a Linear layer is a 1x1 convolution on a 1x1 map."""

    kernel: list[int]
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int

    @classmethod
    def of(cls, conv: nn.Module) -> 'Geometry | None':
        """None where the closed forms do not hold: then derivatives go through autograd."""
        if type(conv).forward is nn.Linear.forward:
            return cls([1, 1], [1, 1], [0, 0], [1, 1], 1)
        plain = (
            isinstance(conv, nn.Conv2d)
            and type(conv).forward is nn.Conv2d.forward
            and type(conv)._conv_forward is nn.Conv2d._conv_forward
            and conv.padding_mode == 'zeros'
            and not isinstance(conv.padding, str)
        )
        if not plain:
            return None
        sizes = (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
        return cls(*(list(size) for size in sizes), conv.groups)


def _as_map(t: Tensor) -> Tensor:
    return t[..., None, None] if t.dim() == 2 else t


@lru_cache(maxsize=512)
def _taps(k: int, stride: int, padding: int, dilation: int, size: int, out: int, dtype, device) -> Tensor:
    """(k, size): 1 where a kernel's tap meets a position of the input for one of the ``out`` outputs."""
    first = torch.arange(k, device=device)[:, None] * dilation - padding
    steps = torch.arange(size, device=device) - first
    return ((steps >= 0) & (steps % stride == 0) & (steps < out * stride)).to(dtype)


def taps_of(x: Tensor, y: Tensor, geometry: Geometry, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    """Of both axes, (kh, H) and (kw, W); None where one tap meets every position."""
    if geometry.kernel == [1, 1] and geometry.stride == [1, 1] and geometry.padding == [0, 0]:
        return None, None
    return tuple(
        _taps(*(size[axis] for size in geometry[:4]), x.shape[2 + axis], y.shape[2 + axis], dtype, x.device)
        for axis in (0, 1)
    )


def mean_slope(x: Tensor, y: Tensor, geometry: Geometry, dtype: torch.dtype) -> Tensor:
    """dmean / dw of a convolution from x to y, (G, K): the mean patch under the kernel, the same for all channels.

    A window sum is the inner product of the map with 0/1 vectors along both axes, so that stride, padding and
    dilation are all one case.
    """
    total = x.sum(0, dtype=dtype)
    vertical, horizontal = taps_of(x, y, geometry, dtype)
    total = total.sum((1, 2)) if vertical is None else vertical @ (total @ horizontal.t())
    return total.view(geometry.groups, -1) / (y.numel() // y.shape[1])


@lru_cache(maxsize=512)
def _lattice(maps: int, height: int, width: int, keep: int, phase: int) -> tuple[list[int], list[int]]:
    """Steps and first places, along (N, H, W), of a regular lattice of one output position in ``keep``.

    Neighbouring positions tell little new, hence a lattice and not a block. Many small maps (RoIs) are
    thinned out while 16 of them remain, and then, as few large ones are, along both axes. ``phase`` in 0 .. keep - 1
    chooses the lattice.
    """
    every = max(d for d in range(1, keep + 1) if keep % d == 0 and maps >= 16 * d or d == 1)
    keep, inner = keep // every, phase // every
    rows = max(d for d in range(1, math.isqrt(keep) + 1) if keep % d == 0)
    steps = [every, min(rows, height), min(keep // rows, width)]
    return steps, [phase % every, inner % steps[1], inner // rows % steps[2]]


def thin(x: Tensor, y: Tensor, geometry: Geometry, keep: int, phase: int) -> tuple[Tensor, Tensor, Geometry]:
    """The convolution from x to y at one output position in ``keep`` alone."""
    every, first = _lattice(len(y), *y.shape[2:], keep, phase)
    x, y = x[first[0] :: every[0]], y[first[0] :: every[0]]
    if every[1:] == [1, 1]:
        return x, y, geometry
    y = y[:, :, first[1] :: every[1], first[2] :: every[2]]
    stride = [s * e for s, e in zip(geometry.stride, every[1:])]
    start = [f * s - p for f, s, p in zip(first[1:], geometry.stride, geometry.padding)]
    if geometry.kernel == [1, 1] and geometry.padding == [0, 0]:
        x = x[:, :, start[0] :: stride[0], start[1] :: stride[1]][:, :, : y.shape[2], : y.shape[3]]
        return x, y, geometry._replace(stride=[1, 1])
    crop = []
    for axis in (1, 0):  # F.pad wants the last axis first; negative padding crops
        covered = (y.shape[2 + axis] - 1) * stride[axis] + (geometry.kernel[axis] - 1) * geometry.dilation[axis] + 1
        crop += [-start[axis], covered - x.shape[2 + axis] + start[axis]]
    return F.pad(x, crop), y, geometry._replace(stride=stride, padding=[0, 0])


def variance_slope(x: Tensor, y: Tensor, mean: Tensor, var: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """dvar / dw (C, K): the mean of 2 (y - mean) patch.

    It is the convolution's weight gradient for the output gradient y - mean, which is normalised here
    so that float16 does not overflow.
    """
    eps, positions = 1e-12, y.numel() // y.shape[1]
    work = y.dtype if y.is_cuda or y.dtype == mean.dtype else mean.dtype  # CPUs are slow in half precision
    y_hat = F.batch_norm(y.to(work), mean, var, None, None, False, 0.0, eps)
    x, scale = x.to(work), torch.sqrt(var + eps) * (2 / positions)
    if work == torch.float16:
        largest = x.abs().amax().clamp(min=1e-4)
        x, y_hat, scale = x / largest, y_hat / 32, scale * largest.float() * 32
    slope = torch.ops.aten.convolution_backward(
        y_hat, x, weight.detach().view(weight.shape[0], -1, *geometry.kernel).to(work), None,
        geometry.stride, geometry.padding, geometry.dilation, False, [0, 0], geometry.groups,
        [False, True, False],
    )[1]  # fmt: skip
    return slope.flatten(1) * scale[:, None]


def gathers(geometry: Geometry, keep: int) -> bool:
    """Whether the compiled kernel takes the lattice's patches: they need no more room than x."""
    return keep > 1 and math.prod(geometry.kernel) <= keep


def closed_slopes(
    x: Tensor, y: Tensor, mean: Tensor, var: Tensor, weight: Tensor, geometry: Geometry, keep: int, phase: int
) -> Tensor:
    """dvar / dw and dmean / dw, (G, C / G + 1, K), from one position in ``keep``."""
    ops = compiled(y)
    if ops is not None and gathers(geometry, keep):
        return ops.cbn_slopes(x, y, mean, *geometry, *_lattice(len(y), *y.shape[2:], keep, phase))
    if keep > 1:
        x, y, geometry = thin(x, y, geometry, keep, phase)
    dmean, dvar = mean_slope(x, y, geometry, mean.dtype), variance_slope(x, y, mean, var, weight, geometry)
    return torch.cat([dvar.unflatten(0, (geometry.groups, -1)), dmean[:, None]], 1)


def slopes_by_autograd(y: Tensor, mean: Tensor, var: Tensor, weight: Tensor) -> Tensor:
    """dvar / dw and dmean / dw of each channel, (C, 2, K), through the graph from ``weight`` to y."""
    if not y.requires_grad:
        raise ValueError('CBN: y does not depend on the given weight; pass the weight that produced y')
    count = y.numel() // y.shape[1]
    small = count**-0.75  # keeps float16 gradients between under- and overflow
    rstd = torch.rsqrt(var + 1e-12)
    with torch.enable_grad():
        y_hat = ((y - _per_channel(mean, y)) * _per_channel(rstd * small, y)).detach().to(y.dtype)
        try:
            (dmean,) = torch.autograd.grad(y, weight, torch.full_like(y, small), retain_graph=True)
            (dvar,) = torch.autograd.grad(y, weight, y_hat, retain_graph=True)
        except RuntimeError as error:
            hint = 'under torch.compile use norm.after(conv, x)' if 'donated' in str(error) else 'is it what made y?'
            raise ValueError(f'CBN: no derivative of y with respect to the given weight; {hint} ({error})') from None
    dmean = dmean.flatten(1).to(mean.dtype) / (small * count)
    dvar = dvar.flatten(1).to(mean.dtype) * (2 / (small * count * rstd))[:, None]
    if y.dtype == torch.float16:  # a channel that overflowed all the same goes uncompensated
        dmean, dvar = (torch.nan_to_num(d, 0.0, 0.0, 0.0) for d in (dmean, dvar))
    return torch.stack([dvar, dmean], 1)


def once_per_group(slopes: Tensor) -> Tensor:
    """(C, 2, K) -> (G, C / G + 1, K) where the channels of each of G equal groups share dmean, as in a convolution."""
    dvar, dmean = slopes.unbind(1)
    tolerance = 1e3 * torch.finfo(dmean.dtype).eps * dmean.abs().amax()
    starts = [0, *((dmean[1:] - dmean[:-1]).abs().amax(1) > tolerance).nonzero()[:, 0].add(1).tolist()]
    size = len(dmean) // len(starts)
    if starts != list(range(0, len(dmean), size)):
        return slopes
    return torch.cat([dvar.unflatten(0, (-1, size)), dmean[::size, None]], 1)


# -- statistics of one batch, and normalisation with its gradient -------------------------------------


COMPILED = False  # whether torch.ops.mmdet has this toolbox's operators; mmdet.layers says so


def compiled(y: Tensor):
    """The compiled operators where they are used and take y; else None, and plain torch serves."""
    return torch.ops.mmdet if COMPILED and _takes(y.device.type) else None


@lru_cache
def _takes(device: str) -> bool:
    key = {'cpu': 'CPU', 'cuda': 'CUDA'}.get(device)
    return key is not None and torch._C._dispatch_has_kernel_for_dispatch_key('mmdet::cbn_window', key)


class Pooled(NamedTuple):
    """Mean and variance (C,) over ``entries`` batches. The compiled kernel adds 1 / sqrt(var + eps) and entries * M."""

    mean: Tensor
    var: Tensor
    entries: int
    rstd: Tensor | None = None
    total: Tensor | None = None


def _full_precision(y: Tensor) -> torch.autocast:
    return torch.autocast(y.device.type, enabled=False)


def process_group(wanted: bool):
    """The group to pool statistics over, or None where there is one process."""
    if wanted and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return dist.group.WORLD
    return None


def batch_moments(y: Tensor, group=None) -> tuple[Tensor, Tensor, int | Tensor]:
    """Mean and biased variance (C,) of this batch over all processes of ``group``, and its positions M.

    At least float32, whatever the type of y. M stays a tensor where y alone has several positions, so that the host
    does not wait for a GPU to learn what it need not know.
    """
    count, wide = y.numel() // y.shape[1], torch.promote_types(y.dtype, torch.float32)
    if count:
        # On CPU the results have the type of the running statistics, which stay what they are at momentum 0.
        like = [None if y.is_cuda or wide == y.dtype else y.new_zeros(y.shape[1], dtype=wide)] * 2
        mean, var = torch.ops.aten.batch_norm_update_stats(y, *like, 0.0)
    else:
        mean = var = y.new_zeros(y.shape[1], dtype=wide)
    if group is None:
        return mean, var, count
    first, second = mean.double(), var.double() + mean.double().square()  # the square is subtracted again
    sums = torch.cat([first * count, second * count, first.new_full((1,), count)])
    dist.all_reduce(sums, group=group)
    total = sums[-1] if count > 1 else int(sums[-1])
    first, second = (sums[:-1] / sums[-1].clamp(min=1)).chunk(2)
    return first.to(mean.dtype), (second - first.square()).clamp(min=0).to(mean.dtype), total


@torch.no_grad()
def track_running_stats(norm: _NormBase, mean: Tensor, var: Tensor, count: int | Tensor) -> None:
    """BatchNorm's rule: a moving average of the batch's mean and unbiased variance; cumulative for momentum None."""
    if norm.running_mean is None:
        return
    norm.num_batches_tracked.add_(1)
    for running, value in ((norm.running_mean, mean), (norm.running_var, var * (count / (count - 1)))):
        value = value.to(running.dtype)
        rate = norm.num_batches_tracked.to(value.dtype).reciprocal() if norm.momentum is None else norm.momentum
        running.lerp_(value, rate)


class NormalizeWithPooled(torch.autograd.Function):
    """gamma (y - mean) / sqrt(var + eps) + beta, where 1/n of mean and var comes from y itself.

    Its gradient is BatchNorm's with the two mean terms divided by n:
    dy = gamma r (g - (sum g + y^ sum(g y^)) / (n M)),  r = 1 / sqrt(var + eps),  y^ = (y - mean) r.
    Where dmean (G, K) and dvar (C, K) say how the rest of mean and var depends on the convolution's weight ``source``,
    that gets its gradient too: -gamma r (sum g dmean + r / 2 sum(g y^) dvar).
    """

    @staticmethod
    def forward(
        ctx, y, mean, var, weight, bias, eps, entries, count, group, rstd=None, total=None, source=None, dmean=None,
        dvar=None,
    ):  # fmt: skip
        if y.is_cuda and not _channels_last(y):
            y = y.contiguous()  # the backward's kernels want one of the two layouts
        ctx.save_for_backward(y, mean, torch.rsqrt(var + eps) if rstd is None else rstd, weight)
        ctx.entries, ctx.count, ctx.group, ctx.total = entries, count, group, total
        # No saved tensors, which activation checkpointing would make anew when the window has moved on.
        ctx.slopes = None if dmean is None else (dmean, dvar, source.shape, source.dtype)
        weight, bias = (None if t is None else t.to(mean.dtype) for t in (weight, bias))
        if y.is_cuda and rstd is not None and y.numel():  # F.batch_norm would copy the mean and take the root again
            return torch.batch_norm_elemt(y, weight, bias, mean, rstd, eps)
        return F.batch_norm(y, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        y, mean, rstd, weight = ctx.saved_tensors
        n, wanted = ctx.entries, [ctx.needs_input_grad[i] for i in (0, 3, 4)]
        sums = [wanted[0], *([True, True] if ctx.slopes else wanted[1:])]
        gamma = torch.ones_like(mean) if weight is None else weight.detach().to(mean.dtype)
        # A compiled graph takes plain BatchNorm's gradient, which it can fuse and trace with sizes that change.
        if ctx.group is not None or (y.is_cuda and not torch.compiler.is_compiling()):
            total = n * ctx.count if ctx.total is None else ctx.total
            grads = _backward_by_sums(grad, y, mean, rstd, gamma, total, ctx.group, sums, y.is_cuda)
        else:
            # BatchNorm's own gradient divides by M alone: take 1/n of it and 1 - 1/n of gamma r g.
            grads = _batch_norm_backward(grad, y, mean, rstd, gamma / n, sums)
            if wanted[0] and not (isinstance(n, int) and n == 1):
                grads[0].addcmul_(grad, _per_channel(gamma * rstd * (1 - 1 / n), y))
        grad_source = None
        if ctx.slopes:
            dmean, dvar, shape, dtype = ctx.slopes
            _, sum_gy, sum_g = grads
            by_mean = (gamma * rstd * sum_g).view(len(dmean), -1, 1) * dmean[:, None]
            grad_source = -(by_mean.flatten(0, 1) + (gamma * rstd.square() * sum_gy / 2)[:, None] * dvar)
            grad_source = grad_source.view(shape).to(dtype)
        grads = [value if want else None for value, want in zip(grads, wanted)]
        return grads[0], None, None, *grads[1:], *[None] * 6, grad_source, None, None


def _per_channel(t: Tensor, y: Tensor) -> Tensor:
    return t.view((1, -1) + (1,) * (y.dim() - 2))


def _batch_norm_backward(grad, y, mean, rstd, gamma, wanted):
    return torch.ops.aten.native_batch_norm_backward(grad, y, gamma, None, None, mean, rstd, True, 0.0, wanted)


def _backward_by_sums(grad, y, mean, rstd, gamma, count, group, wanted, cuda):
    """The two sums, all processes' together, and then dy; on CUDA with SyncBatchNorm's kernels."""
    if cuda:
        grad = grad.contiguous(memory_format=torch.channels_last) if _channels_last(y) else grad.contiguous()
    if not y.numel():
        sum_g = sum_gd = grad_weight = grad_bias = torch.zeros_like(mean)
    elif cuda:
        reduced = torch.batch_norm_backward_reduce(grad, y, mean, rstd, gamma, True, True, True)
        sum_g, sum_gd, grad_weight, grad_bias = reduced  # sum_gd: of g (y - mean)
    else:
        _, grad_weight, grad_bias = _batch_norm_backward(grad, y, mean, rstd, gamma, [False, True, True])
        sum_g, sum_gd = grad_bias, grad_weight / rstd
    if group is not None:
        sums = torch.stack([sum_g, sum_gd])
        dist.all_reduce(sums, group=group)  # by every process, whether or not its y wants a gradient
        sum_g, sum_gd = sums
    grad_y = None
    if wanted[0] and cuda and y.numel():
        total = count if isinstance(count, Tensor) else torch.full_like(sum_g[:1], count)
        total = total.to(torch.int32).view(1)
        grad_y = torch.batch_norm_backward_elemt(grad, y, mean, rstd, gamma, sum_g, sum_gd, total)
    elif wanted[0]:
        of_mean, of_var = (_per_channel(part / count, y) for part in (sum_g, sum_gd * rstd.square()))
        inner = grad - of_mean - (y - _per_channel(mean, y)) * of_var
        grad_y = (inner * _per_channel(gamma * rstd, y)).to(y.dtype)
    return grad_y, grad_weight if wanted[1] else None, grad_bias if wanted[2] else None


def _channels_last(y: Tensor) -> bool:
    return y.dim() == 4 and y.is_contiguous(memory_format=torch.channels_last) and not y.is_contiguous()


# -- the layer ----------------------------------------------------------------------------------------


class CrossIterBatchNorm2d(_NormBase):
    """BatchNorm2d whose training statistics are pooled over the last ``buffer_num + 1`` iterations.

    Parameters, buffers, state-dict keys, running statistics (of the current batch alone) and eval mode are
    BatchNorm2d's. Training mode must know the convolution, in one of these ways, with equal numbers:

        norm.after(conv, x)        runs conv and norm; derivatives in closed form
        norm.follow(conv)          once; from then on ``norm(conv(x))`` does the same
        norm(y, weight)            any differentiable y(weight); derivatives through autograd, slower

    Every training forward with gradient is one entry of the window: so is each micro-batch of gradient
    accumulation, and each call of a layer that is used several times in one iteration.

    Args:
        buffer_num: past batches pooled; 0 is BatchNorm2d.
        burnin: epochs during which the layer is BatchNorm2d. Somebody must tell it the epoch: the Runner's
            ``CBNHook``, or ``set_cbn_epoch``.
        burnin_iters: training forwards during which the layer is BatchNorm2d.
        rho: strength of the compensation; 0 pools past statistics as they were.
        compensation: 'taylor' (the paper) or 'root', first order in the root of the second moment.
        derivative_fraction: share of positions, 1 / integer, from which the derivatives are taken.
        sync: take each batch's statistics over all processes, as SyncBatchNorm does.
        full_gradient: let the gradient also follow the compensated past statistics to the layer's own weight, which
            the paper takes for constants. With unchanged weights the weight's gradient is then BatchNorm's on all
            batches of the window. Trains far better from scratch and on correlated batches (docs/cbn.md); holds one
            more tensor of the weight's size until the backward pass.

    Raises:
        ValueError: an option out of range; in training mode an unknown weight, a y that does not depend on
            it, or one value per channel.

    It derives from BatchNorm's base class but not from ``_BatchNorm``: ``convert_sync_batchnorm``
    (``sync_bn=`` of a config) silently replaces every layer that does.

    >>> conv, norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), CrossIterBatchNorm2d(8)
    >>> x = torch.rand(2, 3, 32, 32)
    >>> norm.after(conv, x).shape, norm(conv(x), conv.weight).shape
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
        full_gradient: bool = False,
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
        self.full_gradient = full_gradient
        # Plain attributes: as buffers they would be published, broadcast by DDP and averaged over processes.
        self.window: Window | None = None
        self.steps = 0  # training forwards with gradient
        self.epoch: int | None = None
        self._forget()

    def _forget(self) -> None:
        """Drop what links the layer to forwards in progress; take a name of its own for compiled graphs."""
        self._source: tuple[nn.Module, Tensor, Tensor] | None = None
        self._recent: deque = deque(maxlen=8)
        self._handle = next(_NUMBERS)
        _LAYERS[self._handle] = self

    def __getstate__(self) -> dict:
        return {k: v for k, v in super().__getstate__().items() if k not in ('_source', '_recent', '_handle')}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._forget()

    def _apply(self, fn, recurse: bool = True):
        super()._apply(fn, recurse)
        if self.window is not None:
            self.window.to(fn)
        self._recent.clear()
        return self

    def extra_repr(self) -> str:
        own = 'buffer_num burnin burnin_iters rho compensation derivative_fraction sync full_gradient'.split()
        return ', '.join([super().extra_repr(), *(f'{name}={getattr(self, name)}' for name in own)])

    @property
    def burning_in(self) -> bool:
        """Whether the layer is still BatchNorm2d."""
        return self.steps < self.burnin_iters or bool(self.burnin and (self.epoch or 0) < self.burnin)

    # -- ways to know the convolution

    def after(self, conv: nn.Module, x: Tensor) -> Tensor:
        """``self(conv(x))`` with derivatives in closed form."""
        return self(conv(x), conv=conv, x=x)

    def follow(self, conv: nn.Module) -> 'CrossIterBatchNorm2d':
        """From now on ``self(conv(x))`` takes ``conv`` and x from ``conv``'s last call."""
        conv.register_forward_hook(self._remember)
        return self

    def unfollow(self, conv: nn.Module) -> None:
        for key, hook in list(conv._forward_hooks.items()):
            if getattr(hook, '__self__', None) is self:
                del conv._forward_hooks[key]

    def _remember(self, conv: nn.Module, inputs: tuple, y: Tensor) -> None:
        if self.training:
            self._source = (conv, inputs[0], y)

    # -- forward

    def forward(
        self, y: Tensor, weight: Tensor | None = None, *, conv: nn.Module | None = None, x: Tensor | None = None
    ) -> Tensor:
        """Normalise y (N, C, H, W) or (N, C), the output of ``weight`` (C, ...), or of ``conv`` at ``x``."""
        if y.dim() not in (2, 3, 4, 5) or y.shape[1] != self.num_features:
            raise ValueError(f'CBN: input of shape {tuple(y.shape)} does not have {self.num_features} channels')
        if not self.training:
            running = self.running_mean, self.running_var
            return F.batch_norm(y, *running, self.weight, self.bias, running[0] is None, 0.0, self.eps)
        if self._source is not None:
            source, self._source = self._source, None
            if weight is None and conv is None:
                conv, x, made = source
                if made is not y:
                    raise ValueError('CBN: the layer follows a convolution that did not return its input')
        group = process_group(self.sync)
        geometry = Geometry.of(conv) if conv is not None and x is not None else None
        compiling = torch.compiler.is_compiling()
        if compiling and (group is not None or geometry is None):
            return _uncompiled(self, y, weight, conv=conv, x=x)
        if y.numel() == 0 and group is None:
            # No RoI: nothing to learn from, but a connected graph.
            zero, one = y.new_zeros(y.shape[1]), y.new_ones(y.shape[1])
            return F.batch_norm(y, zero, one, self.weight, self.bias, False, 0.0, self.eps)
        bias = None
        if conv is not None:
            weight, bias = conv.weight, conv.bias
        if weight is None and self.buffer_num:
            raise ValueError(
                'CBN: training needs the convolution: call norm(y, conv.weight) or norm.after(conv, x), '
                'or norm.follow(conv) once'
            )
        record = torch.is_grad_enabled()
        trained = weight is not None and weight.requires_grad
        if compiling:
            tensors = [None if t is None else t.detach() for t in (y, x, weight, bias)]
            follow = self.full_gradient and record and trained
            mean, var, pooled_mean, pooled_var, entries, *slopes = torch.ops.mmdet.cbn_statistics(
                *tensors, *geometry, record, trained, follow, self._handle
            )
            pooled, count = Pooled(pooled_mean, pooled_var, entries), y.numel() // y.shape[1]
            slopes = slopes if follow else None
            track_running_stats(self, mean, var, count)
        else:
            alone = group is None and geometry is not None
            if alone and (out := self._one_operator(y, x, weight, bias, geometry, record, trained)) is not None:
                return out
            with torch.no_grad(), _full_precision(y):
                _, _, pooled, slopes, count = self._statistics(
                    y, x, weight, bias, geometry, record, trained, group, track=True
                )
        through = () if slopes is None else (weight, *slopes)
        return NormalizeWithPooled.apply(
            y, pooled.mean, pooled.var, self.weight, self.bias, self.eps, pooled.entries, count, group,
            pooled.rstd, pooled.total, *through,
        )  # fmt: skip

    def _one_operator(self, y, x, weight, bias, geometry, record, trained) -> Tensor | None:
        """The forward by one compiled operator with its gradient: ``_statistics`` and ``NormalizeWithPooled`` together;
        None where they have to do it."""
        ops, shape, running_mean = compiled(y), self._shape(weight, geometry, trained), self.running_mean
        if ops is None or self._repeats() or not (self.window is None or self.window.fits(shape)):
            return None
        if running_mean is not None and running_mean.dtype != torch.promote_types(y.dtype, torch.float32):
            return None
        if y.numel() == self.num_features:
            raise _one_value(y)
        active = self._pools(y)
        enters = record and active
        source, taps, every, first = (None, None), (None, None), (), ()
        if enters:
            if self.window is None:
                self.window = Window(self.buffer_num, shape, y)
            keep, phase = self._sampling()
            if shape[2]:
                source = _as_map(x), _as_map(y)
                if gathers(geometry, keep):
                    every, first = _lattice(len(y), *source[1].shape[2:], keep, phase)
                else:
                    with torch.no_grad():
                        *source, geometry = thin(*source, geometry, keep, phase) if keep > 1 else (*source, geometry)
                    taps = taps_of(*source, geometry, self.window.dvar.dtype)
        *held, filled, slot = self._held(active)
        out, mean, *pooled, dmean = ops.cbn_train(
            y, weight, bias, self.weight, self.bias, *source, *geometry, every, first, *taps, *held, running_mean,
            self.running_var, self.num_batches_tracked, self.momentum, filled, slot, enters, self.rho,
            self.compensation == 'root', self.full_gradient and record and trained, self.eps,
        )  # fmt: skip
        if enters:
            self.window.dmean = dmean
            self.window.advance()
        self.steps += record
        pooled = Pooled(*pooled[:2], filled + 1, *pooled[2:])
        self._recent.append((mean, pooled, active, record))
        return out

    def _statistics(self, y, x, weight, bias, geometry, record, trained, group=None, track=False):
        """Current mean and variance, pooled ones, derivatives of these if the gradient follows them, positions M.

        ``weight`` and ``bias`` are the convolution's; the window leaves the bias out, which shifts every
        batch alike. ``track``: the running statistics, too.
        """
        mean, var, count = batch_moments(y, group)
        several = isinstance(count, Tensor) or count > 1
        if not several and count:
            raise _one_value(y)
        again = self._repeats()
        if again:
            pooled, active, recorded = self._recall(mean)
            entries, record = pooled.entries, record and not recorded
        else:
            active = self._pools(y)
            entries = 1 + (self.window.filled if active and self.window else 0)
        record = record and several
        through = slopes = None
        if self.full_gradient and record and trained and entries > 1 and self.window.dvar.shape[2]:
            through = self.window.gradient(_rows(weight, mean), self.rho, self.compensation, _less(mean, bias))
        if record and active:
            if trained and self.rho:
                slopes = self._slopes(y, x, mean, var, weight, geometry, group)
            else:  # nothing to compensate for
                slopes = mean.new_zeros(1, len(mean) + 1, 0)
            if self.window is None:
                self.window = Window(self.buffer_num, slopes.shape, slopes)
        ops = compiled(y) if several and not (again and slopes is None) else None
        if ops is not None:
            track = track and not again
            found, slopes = self._pool_compiled(ops, mean, var, weight, bias, active, slopes, count, track)
            pooled = pooled if again else found
        elif not again:
            pooled = Pooled(mean, var, 1)
            if entries > 1:
                past = self.window.under(_rows(weight, mean), self.rho, self.compensation)
                pooled_mean, pooled_var = _pool(_less(mean, bias), var, *past)
                pooled = Pooled(pooled_mean if bias is None else pooled_mean + bias, pooled_var, entries)
            if track and several:
                track_running_stats(self, mean, var, count)
        if slopes is not None:
            if not self.window.fits(slopes.shape):
                self.window = Window(self.buffer_num, slopes.shape, slopes)
            self.window.push(_less(mean, bias), var, slopes, _rows(weight, mean))
        if not again:
            self._recent.append((mean, pooled, active, record))
        self.steps += record
        return mean, var, pooled, through, count

    def _shape(self, weight, geometry, trained) -> tuple[int, int, int]:
        """That of the slopes, (G, C / G + 1, K)."""
        if not (trained and self.rho):  # nothing to compensate for
            return 1, self.num_features + 1, 0
        return geometry.groups, self.num_features // geometry.groups + 1, weight.numel() // self.num_features

    def _held(self, active: bool) -> tuple:
        """What the compiled operators take of the window: three tensors, the batches held, the next one's place."""
        window = self.window if active else None
        if window is None:
            return None, None, None, 0, 0
        return window.values, window.dmean, window.dvar, window.filled, window.slot

    def _pool_compiled(self, ops, mean, var, weight, bias, active, slopes, count, track):
        """Pooled statistics, and ``slopes`` if they have not entered the window, since it does not fit them."""
        *held, filled, slot = self._held(active)
        enters = slopes is not None and self.window.fits(slopes.shape)
        running, rate, synced = (None,) * 3, 0.0, isinstance(count, Tensor)
        if track and self.running_mean is not None:
            if self.running_mean.dtype != mean.dtype or synced:
                track_running_stats(self, mean, var, count)
            else:
                self.num_batches_tracked.add_(1)
                cumulative = self.momentum is None
                running = self.running_mean, self.running_var, self.num_batches_tracked if cumulative else None
                rate = 0.0 if cumulative else self.momentum
        root = self.compensation == 'root'
        weight = None if weight is None else weight.detach().contiguous()
        pooled_mean, pooled_var, rstd, total, dmean, _, _ = ops.cbn_window(
            weight, mean, var, bias, *held, slopes if enters else None, *running,
            rate, filled, slot, 1 if synced else count, self.rho, root, False, self.eps,
        )  # fmt: skip
        if enters:
            self.window.dmean = dmean
            self.window.advance()
        if synced:
            total = (filled + 1) * count
        return Pooled(pooled_mean, pooled_var, filled + 1, rstd, total), None if enters else slopes

    def _pools(self, y: Tensor) -> bool:
        """Whether past batches count in this forward."""
        if y.is_cuda and torch.cuda.is_current_stream_capturing():
            raise ValueError('CBN: a CUDA graph would always write to one place of the window; do not capture training')
        if self.burnin and self.epoch is None:
            self.epoch = 0
            warnings.warn(
                f'CBN: burnin={self.burnin} epochs, but nothing tells the layer the epoch: register '
                'CBNHook, call set_cbn_epoch(model, epoch) each epoch, or give burnin_iters instead',
                stacklevel=5,
            )
        return bool(self.buffer_num) and not self.burning_in

    def _repeats(self) -> bool:
        """Whether activation checkpointing repeats an earlier forward, inside the backward pass."""
        return bool(self._recent) and torch._C._current_graph_task_id() != -1

    def _recall(self, mean: Tensor):
        distances = torch.stack([(mean - then[0]).abs().amax() for then in self._recent])
        index = int(distances.argmin())
        _, *then = self._recent[index]
        self._recent[index] = (mean, *then[:-1], True)
        return then

    def _sampling(self) -> tuple[int, int]:
        """One position in how many gives the derivatives, and which of these lattices it is this time."""
        keep = max(round(1 / self.derivative_fraction), 1)
        return keep, int(self.steps * 0.6180339887498949 % 1 * keep)  # golden ratio: no lattice twice in a row

    def _slopes(self, y, x, mean, var, weight, geometry, group) -> Tensor:
        """dvar / dw and dmean / dw, (G, C / G + 1, K), of this batch, over all processes of ``group``."""
        count, groups = y.numel() // y.shape[1], len(mean) if geometry is None else geometry.groups
        if not count:  # other processes have RoIs
            slopes = mean.new_zeros(groups, len(mean) // groups + 1, weight[0].numel())
        elif geometry is None:
            slopes = slopes_by_autograd(y, mean, var, weight)
        else:
            slopes = closed_slopes(_as_map(x), _as_map(y), mean, var, weight, geometry, *self._sampling())
        if group is not None:
            sums = torch.cat([slopes.to(mean.dtype).flatten() * count, mean.new_full((1,), count)])
            dist.all_reduce(sums, group=group)
            slopes = (sums[:-1] / sums[-1]).view(slopes.shape)
        return once_per_group(slopes) if geometry is None else slopes


def _one_value(y: Tensor) -> ValueError:
    return ValueError(f'CBN: one value per channel (input {tuple(y.shape)}) has no variance to train on')


def _less(mean: Tensor, bias: Tensor | None) -> Tensor:
    return mean if bias is None else mean - bias


def _rows(weight: Tensor, like: Tensor) -> Tensor:
    """(C, ...) -> (C, K), of the statistics' type."""
    return weight.detach().flatten(1).to(like.dtype)


def _pool(mean: Tensor, var: Tensor, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Statistics of the current batch (C,) and the past ones (C, S) together, each batch counted once."""
    between, pooled = torch.var_mean(torch.cat([mean[:, None], means], 1), 1, correction=0)
    return pooled, torch.cat([var[:, None], variances], 1).mean(1) + between


# -- torch.compile ------------------------------------------------------------------------------------

# Numbers by which a compiled graph finds the layer whose window it reads and extends.
_LAYERS: weakref.WeakValueDictionary[int, CrossIterBatchNorm2d] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count(1)


# torch.compile's CUDA graphs leave it out, where torch (2.8 and newer) can: a replay runs no Python.
_TAGS = dict(tags=(torch.Tag.cudagraph_unsafe,)) if hasattr(torch.Tag, 'cudagraph_unsafe') else {}


@torch.library.custom_op(
    'mmdet::cbn_statistics',
    mutates_args=(),
    **_TAGS,
    # spelled out because torch 2.4 cannot read it off list[int]
    schema='(Tensor y, Tensor x, Tensor weight, Tensor? bias, int[] kernel, int[] stride, int[] padding, '
    'int[] dilation, int groups, bool record, bool trained, bool follow, int handle) '
    '-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)',
)
def _cbn_statistics(
    y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, kernel: list[int], stride: list[int],
    padding: list[int], dilation: list[int], groups: int, record: bool, trained: bool, follow: bool, handle: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """``CrossIterBatchNorm2d._statistics`` as one node of a graph, so that window, step count and burn-in
    change from call to call without a graph break or another compilation."""
    layer = _LAYERS[handle]
    geometry = Geometry(kernel, stride, padding, dilation, groups)
    with _full_precision(y):
        mean, var, pooled, slopes, _ = layer._statistics(y, x, weight, bias, geometry, record, trained)
    slopes = slopes or (mean.new_zeros(shape) for shape in _slope_shapes(weight, groups, follow))
    return mean, var, pooled.mean.clone(), pooled.var.clone(), mean.new_full((), pooled.entries), *slopes


@_cbn_statistics.register_fake
def _(y, x, weight, bias, kernel, stride, padding, dilation, groups, record, trained, follow, handle):
    channel = y.new_empty(y.shape[1], dtype=torch.promote_types(y.dtype, torch.float32))
    slopes = (channel.new_empty(shape) for shape in _slope_shapes(weight, groups, follow))
    return *(torch.empty_like(channel) for _ in range(4)), channel.new_empty(()), *slopes


@torch.compiler.disable
def _uncompiled(norm: 'CrossIterBatchNorm2d', *args, **options) -> Tensor:
    """Outside of the graph: derivatives by autograd, which cannot be taken while a forward is traced; and ``sync``,
    since a compiled backward drops the reduction of a process that has no position and so no use for its result, and
    the others wait for it."""
    return norm(*args, **options)


def _slope_shapes(weight, groups, follow):
    """(G, K) and (C, K), or nothing."""
    width = weight.shape[1:].numel() if follow else 0
    return (groups, width), (weight.shape[0], width)


# -- state that is not in the state dict --------------------------------------------------------------


def cbn_layers(model: nn.Module) -> dict[str, CrossIterBatchNorm2d]:
    """All CBN layers of ``model`` by their names."""
    return {name: m for name, m in model.named_modules() if isinstance(m, CrossIterBatchNorm2d)}


def set_cbn_epoch(model: nn.Module, epoch: int) -> None:
    """Tell every CBN layer of ``model`` how many epochs are done: ``burnin=8`` ends when this reaches 8."""
    for layer in cbn_layers(model).values():
        layer.epoch = epoch


def cbn_state(model: nn.Module) -> dict[str, dict]:
    """Windows and step counts of all CBN layers as plain numbers and tensors, for a training checkpoint."""
    return {
        name: dict(steps=layer.steps, window=layer.window.state() if layer.window else None)
        for name, layer in cbn_layers(model).items()
    }


def load_cbn_state(model: nn.Module, state: dict[str, dict]) -> None:
    """Put back what ``cbn_state`` returned. A window of another size than today's ``buffer_num`` starts empty."""
    layers = cbn_layers(model)
    if layers.keys() != state.keys():
        odd = sorted(layers.keys() ^ state.keys())
        raise ValueError(f'CBN state does not fit the model: layers {", ".join(odd)} are in one of them only')
    for name, layer in layers.items():
        layer.steps, saved = state[name]['steps'], state[name]['window']
        fits = saved is not None and saved['dvar'].shape[1] == layer.buffer_num
        device = next(itertools.chain(layer.parameters(), layer.buffers()), torch.empty(0)).device
        layer.window = Window.from_state(saved, device) if fits else None
