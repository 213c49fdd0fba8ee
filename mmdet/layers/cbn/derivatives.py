"""Derivatives of a batch's mean and variance with respect to the weight of the convolution that made it.

    dmean (G, K)    the mean input patch under the kernel, the same for all channels of a group
    dvar (C, K)     the mean of 2 (y - mean) patch
    derivatives     both in one tensor (G, C / G + 1, K): dvar of each group's channels, then their dmean

A regular grid of output positions can stand for all of them, since they only compensate. Where the closed forms do not
hold, autograd finds the same.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch_stats import Moments, channel_sums, channels_last, per_channel


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
        return cls(
            list(conv.kernel_size), list(conv.stride), list(conv.padding), list(conv.dilation), conv.groups
        )


class ConvCall(NamedTuple):
    """The convolution that made y: weight (C, ...) and bias, and its input and geometry where the closed forms hold."""

    weight: Tensor | None
    bias: Tensor | None = None
    x: Tensor | None = None
    geometry: Geometry | None = None
    trained: bool = False  # whether the weight is

    @classmethod
    def of(cls, weight: Tensor | None, conv: nn.Module | None, x: Tensor | None) -> 'ConvCall':
        bias, geometry = None, None
        if conv is not None:
            weight, bias = conv.weight, conv.bias
            geometry = None if x is None else Geometry.of(conv)
        return cls(weight, bias, x, geometry, weight is not None and weight.requires_grad)

    def rows(self, dtype: torch.dtype) -> Tensor:
        """The weight, (C, K)."""
        return self.weight.detach().flatten(1).to(dtype)

    def without_bias(self, mean: Tensor) -> Tensor:
        return mean if self.bias is None else mean - self.bias


def batch_derivatives(y: Tensor, batch: Moments, call: ConvCall, grid: 'Grid', group, closed_form) -> Tensor:
    """Derivatives of ``batch``, the statistics of y, over all processes of ``group``; ``closed_form`` is that of this
    file or of kernels.py."""
    channels, count = y.shape[1], y.numel() // y.shape[1]
    groups = channels if call.geometry is None else call.geometry.groups
    if not count:  # other processes have RoIs
        found = batch.mean.new_zeros(groups, channels // groups + 1, call.weight[0].numel())
    elif call.geometry is None:
        found = by_autograd(y, batch, call.weight)
    else:
        found = closed_form(as_map(call.x), as_map(y), batch, call.geometry, grid)
    if group is not None:
        sums = torch.cat([found.to(batch.mean.dtype).flatten() * count, batch.mean.new_full((1,), count)])
        dist.all_reduce(sums, group=group)
        found = (sums[:-1] / sums[-1]).view(found.shape)
    return once_per_group(found) if call.geometry is None else found


def as_map(t: Tensor) -> Tensor:
    """(N, C) -> (N, C, 1, 1), as a Linear layer has it."""
    return t[..., None, None] if t.dim() == 2 else t


# -- closed forms -------------------------------------------------------------------------------------


def gathers(geometry: Geometry, grid: 'Grid') -> bool:
    """Whether the grid's patches, all together, need no more room than x."""
    return 1 < math.prod(grid.step) >= math.prod(geometry.kernel)


def in_closed_form(x: Tensor, y: Tensor, batch: Moments, geometry: Geometry, grid: 'Grid') -> Tensor:
    """Derivatives of the convolution from x (N, C_in, H, W) to y (N, C, OH, OW), at the grid's positions of y."""
    if geometry.groups == 1 and gathers(geometry, grid) and not y.is_cuda and channels_last(x) and channels_last(y):
        return from_patches(x, y, batch, geometry, grid)
    x, y, geometry = subsample(x, y, geometry, grid)
    dmean = mean_derivative(x, y, geometry, batch.mean.dtype)
    dvar = variance_derivative(x, y, batch, geometry)
    return torch.cat([dvar.unflatten(0, (geometry.groups, -1)), dmean[:, None]], 1)


def from_patches(x: Tensor, y: Tensor, batch: Moments, geometry: Geometry, grid: 'Grid') -> Tensor:
    """The same of channels-last maps by one matrix product: the patches lie together, and need no more room than x."""
    (every, *step), (first, *start) = grid
    (mean, var, _), x, y = batch, x[first::every].movedim(1, -1), y[first::every].movedim(1, -1)
    y = y[:, start[0] :: step[0], start[1] :: step[1]]
    kernel, spans = geometry.kernel, []
    for axis in (0, 1):  # of each kernel offset: the outputs whose input lies within the map, and those inputs
        stride, size = geometry.stride[axis] * step[axis], x.shape[1 + axis]
        spans.append([])
        for offset in range(kernel[axis]):
            at = start[axis] * geometry.stride[axis] + offset * geometry.dilation[axis] - geometry.padding[axis]
            low, high = max(-(at // stride), 0), min((size - 1 - at) // stride + 1, y.shape[1 + axis])
            low = min(low, max(high, 0))
            spans[axis].append((slice(low, max(high, low)), slice(at + low * stride, None, stride)))
    patches = x.new_zeros(*y.shape[:3], *kernel, x.shape[3])
    for i, (rows, of_rows) in enumerate(spans[0]):
        for j, (columns, of_columns) in enumerate(spans[1]):
            part = patches[:, rows, columns, i, j]
            part.copy_(x[:, of_rows, of_columns][:, : part.shape[1], : part.shape[2]])
    patches, y = patches.flatten(3).flatten(0, 2), y.flatten(0, 2)
    work = mean.dtype if y.dtype == torch.float16 else y.dtype
    y_hat = ((y - mean) * torch.rsqrt(var + 1e-12)).to(work)
    dvar = (y_hat.t() @ patches.to(work)).to(mean.dtype) * (torch.sqrt(var + 1e-12) * (2 / len(y)))[:, None]
    found = torch.cat([dvar, channel_sums(patches, mean.dtype)[None] / len(y)])
    return found.unflatten(1, (-1, x.shape[3])).transpose(1, 2).flatten(1)[None]  # weights go channels first


def mean_derivative(x: Tensor, y: Tensor, geometry: Geometry, dtype: torch.dtype) -> Tensor:
    """(G, K). The sum under a kernel offset is the inner product of the summed map with 0/1 vectors along both axes.

    ``torch.nn.grad.conv2d_weight`` of ones gives the same in two to three times the time, and in float32 with ten times
    the error.
    """
    total = x[0].to(dtype) if len(x) == 1 else x.sum(0, dtype=dtype)
    rows, columns = kernel_offsets(x, y, geometry, dtype)
    total = total.sum((1, 2)) if rows is None else rows @ (total @ columns.t())
    return total.view(geometry.groups, -1) / (y.numel() // y.shape[1])


def kernel_offsets(
    x: Tensor, y: Tensor, geometry: Geometry, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None]:
    """(kh, H) and (kw, W): 1 where a kernel offset meets an input position; None where the one offset meets all."""
    if geometry.kernel == [1, 1] and geometry.stride == [1, 1] and geometry.padding == [0, 0]:
        return None, None
    return tuple(
        _offsets(*(size[axis] for size in geometry[:4]), x.shape[2 + axis], y.shape[2 + axis], dtype, x.device)
        for axis in (0, 1)
    )


@lru_cache(maxsize=512)
def _offsets(k: int, stride: int, padding: int, dilation: int, size: int, out: int, dtype, device) -> Tensor:
    first = torch.arange(k, device=device)[:, None] * dilation - padding
    steps = torch.arange(size, device=device) - first
    return ((steps >= 0) & (steps % stride == 0) & (steps < out * stride)).to(dtype)


def variance_derivative(x: Tensor, y: Tensor, batch: Moments, geometry: Geometry) -> Tensor:
    """(C, K): the convolution's weight gradient for the output gradient y - mean, which is normalised here so that
    float16 does not overflow."""
    (mean, var, _), eps, positions = batch, 1e-12, y.numel() // y.shape[1]
    work = y.dtype if y.is_cuda or y.dtype == mean.dtype else mean.dtype  # CPUs are slow in half precision
    y_hat = F.batch_norm(y.to(work), mean, var, None, None, False, 0.0, eps)
    x, scale = x.to(work), torch.sqrt(var + eps) * (2 / positions)
    if work == torch.float16:
        largest = x.abs().amax().clamp(min=1e-4)
        x, y_hat, scale = x / largest, y_hat / 32, scale * largest.float() * 32
    kernel, *moves, groups = geometry
    shape = y.shape[1], x.shape[1] // groups, *kernel
    gradient = torch.nn.grad.conv2d_weight(x, shape, y_hat, *moves, groups)
    return gradient.flatten(1) * scale[:, None]


# -- subsampling --------------------------------------------------------------------------------------


class Grid(NamedTuple):
    """Output positions start, start + step, ... along (N, H, W)."""

    step: tuple[int, int, int]
    start: tuple[int, int, int]


@lru_cache(maxsize=512)
def subsampling_grid(maps: int, height: int, width: int, factor: int, index: int) -> Grid:
    """One position in ``factor``; ``index`` in 0 .. factor - 1 chooses which.

    Neighbouring positions tell little new, hence a grid and not a block. Many small maps (RoIs) are subsampled while
    16 of them remain, and then, as few large ones are, along both axes.
    """
    every = max(d for d in range(1, factor + 1) if factor % d == 0 and maps >= 16 * d or d == 1)
    factor, inner = factor // every, index // every
    rows = max(d for d in range(1, math.isqrt(factor) + 1) if factor % d == 0)
    step = every, min(rows, height), min(factor // rows, width)
    return Grid(step, (index % every, inner % step[1], inner // rows % step[2]))


def subsample(x: Tensor, y: Tensor, geometry: Geometry, grid: Grid) -> tuple[Tensor, Tensor, Geometry]:
    """The convolution from x to y at the grid's positions alone."""
    (every, *step), (first, *start) = grid
    if every > 1:
        x, y = x[first::every], y[first::every]
    if step == [1, 1]:
        return x, y, geometry
    y = y[:, :, start[0] :: step[0], start[1] :: step[1]]
    stride = [s * e for s, e in zip(geometry.stride, step)]
    origin = [f * s - p for f, s, p in zip(start, geometry.stride, geometry.padding)]
    if geometry.kernel == [1, 1] and geometry.padding == [0, 0]:
        x = x[:, :, origin[0] :: stride[0], origin[1] :: stride[1]][:, :, : y.shape[2], : y.shape[3]]
        return x, y, geometry._replace(stride=[1, 1])
    crop = []
    for axis in (1, 0):  # F.pad wants the last axis first; negative padding crops
        covered = (y.shape[2 + axis] - 1) * stride[axis] + (geometry.kernel[axis] - 1) * geometry.dilation[axis] + 1
        crop += [-origin[axis], covered - x.shape[2 + axis] + origin[axis]]
    return F.pad(x, crop), y, geometry._replace(stride=stride, padding=[0, 0])


# -- autograd -----------------------------------------------------------------------------------------


def by_autograd(y: Tensor, batch: Moments, weight: Tensor) -> Tensor:
    """Derivatives of each channel, (C, 2, K), through the graph from ``weight`` to y."""
    if not y.requires_grad:
        raise ValueError('CBN: y does not depend on the given weight; pass the weight that produced y')
    (mean, var, _), count = batch, y.numel() // y.shape[1]
    small = count**-0.75  # keeps float16 gradients between under- and overflow
    rstd = torch.rsqrt(var + 1e-12)
    with torch.enable_grad():
        y_hat = ((y - per_channel(mean, y)) * per_channel(rstd * small, y)).detach().to(y.dtype)
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


def once_per_group(found: Tensor) -> Tensor:
    """(C, 2, K) -> (G, C / G + 1, K) where the channels of each of G equal groups share dmean, as in a convolution."""
    dvar, dmean = found.unbind(1)
    tolerance = 1e3 * torch.finfo(dmean.dtype).eps * dmean.abs().amax()
    starts = [0, *((dmean[1:] - dmean[:-1]).abs().amax(1) > tolerance).nonzero()[:, 0].add(1).tolist()]
    size = len(dmean) // len(starts)
    if starts != list(range(0, len(dmean), size)):
        return found
    return torch.cat([dvar.unflatten(0, (-1, size)), dmean[::size, None]], 1)
