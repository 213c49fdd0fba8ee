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

This file needs torch alone, and can be copied into another project as it is.
"""

import math
import warnings
import weakref
from collections import deque
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _NormBase

# -- the window ---------------------------------------------------------------------------------------


class Window:
    """The last batches in a ring: their statistics, derivatives and <derivative, weight of the time>.

    dmean is (size, G, K), equal for all channels of a group where the closed form holds, and else G = C;
    dvar is (size, C, K); scalars is (size, 4, C): mean, var, <dmean, w>, <dvar, w>.
    """

    def __init__(self, size: int, dmean: Tensor, dvar: Tensor) -> None:
        self.dmean = dmean.new_zeros(size, *dmean.shape)
        self.dvar = dvar.new_zeros(size, *dvar.shape)
        self.scalars = dvar.new_zeros(size, 4, dvar.shape[0])
        self.filled = 0
        self.slot = 0

    def fits(self, dmean: Tensor, dvar: Tensor) -> bool:
        return self.dmean.shape[1:] == dmean.shape and self.dvar.shape[1:] == dvar.shape

    def push(self, mean: Tensor, var: Tensor, dmean: Tensor, dvar: Tensor, weight: Tensor) -> None:
        here = slice(self.slot, self.slot + 1)
        self.dmean[here], self.dvar[here] = dmean, dvar
        products = _products(self.dmean[here], self.dvar[here], weight)
        torch.stack([mean, var, products[0][0], products[1][0]], out=self.scalars[self.slot])
        self.slot = (self.slot + 1) % self.dvar.shape[0]
        self.filled = min(self.filled + 1, self.dvar.shape[0])

    def under(self, weight: Tensor, rho: float, compensation: str) -> tuple[Tensor, Tensor]:
        """Means and variances, both (S, C), that the batches held would give with ``weight`` (C, K)."""
        held = slice(0, self.filled)
        mean, var, dmean_w, dvar_w = self.scalars[held].unbind(1)
        now_mean, now_var = _products(self.dmean[held], self.dvar[held], weight)
        shift, change = rho * (now_mean - dmean_w), rho * (now_var - dvar_w)
        result = var + change - shift.square()
        if compensation == 'root':  # sqrt(nu) is a norm of w: nu' = nu (1 + dnu / (2 nu))^2
            dnu, nu = change + 2 * mean * shift, var + mean.square()
            result = result + dnu.square() / (4 * nu).clamp(min=torch.finfo(nu.dtype).tiny)
        return mean + shift, result.clamp(min=0)

    def to(self, fn) -> None:
        """Move with the layer, but stay at least float32."""
        for name in ('dmean', 'dvar', 'scalars'):
            moved = fn(getattr(self, name))
            setattr(self, name, moved.to(torch.promote_types(moved.dtype, torch.float32)))

    def state(self) -> dict:
        tensors = {name: getattr(self, name).cpu().clone() for name in ('dmean', 'dvar', 'scalars')}
        return dict(tensors, filled=self.filled, slot=self.slot)

    @classmethod
    def from_state(cls, state: dict, device: torch.device) -> 'Window':
        window = cls.__new__(cls)
        for name in ('dmean', 'dvar', 'scalars'):
            setattr(window, name, state[name].to(device, copy=True))
        window.filled, window.slot = state['filled'], state['slot']
        return window


def _products(dmean: Tensor, dvar: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """<dmean, w> and <dvar, w>, both (S, C)."""
    grouped = weight.view(dmean.shape[1], -1, weight.shape[1])
    return torch.einsum('sgk,gck->sgc', dmean, grouped).flatten(1), torch.linalg.vecdot(dvar, weight)


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


def patch_sum(x: Tensor, y: Tensor, geometry: Geometry, dtype: torch.dtype) -> Tensor:
    """Sum over all positions of the input patch under the kernel, (G, K): M times every channel's dmean / dw.

    A window sum is the inner product of the map with 0/1 vectors along both axes, so that stride, padding and
    dilation are all one case.
    """
    total = x.sum(0, dtype=dtype)
    if geometry.kernel == [1, 1] and geometry.stride == [1, 1] and geometry.padding == [0, 0]:
        return total.sum((1, 2)).view(geometry.groups, -1)
    taps = []
    for axis in (0, 1):
        k, stride, padding, dilation = (geometry[i][axis] for i in range(4))
        taps.append(_taps(k, stride, padding, dilation, x.shape[2 + axis], y.shape[2 + axis], dtype, x.device))
    return (taps[0] @ (total @ taps[1].t())).view(geometry.groups, -1)


def _lattice(x: Tensor, y: Tensor, geometry: Geometry, keep: int, offset: float) -> tuple[Tensor, Tensor, Geometry]:
    """Restrict a convolution from x to y to one output position in ``keep``, on a regular lattice.

    Neighbouring positions tell little new, hence a lattice and not a block. Many small maps (RoIs) are
    thinned out over the maps, few large ones along both axes. ``offset`` in [0, 1) chooses the lattice.
    """
    phase = int(offset * keep)
    if len(y) >= 4 * keep:
        return x[phase::keep], y[phase::keep], geometry
    rows = max(d for d in range(1, math.isqrt(keep) + 1) if keep % d == 0)
    every = [min(rows, y.shape[2]), min(keep // rows, y.shape[3])]
    first = [phase % every[0], phase // rows % every[1]]
    y = y[:, :, first[0] :: every[0], first[1] :: every[1]]
    crop = []
    for axis in (1, 0):  # F.pad wants the last axis first; negative padding crops
        k, stride, padding, dilation = (geometry[i][axis] for i in range(4))
        before = padding - first[axis] * stride
        covered = (y.shape[2 + axis] - 1) * every[axis] * stride + (k - 1) * dilation + 1
        crop += [before, covered - x.shape[2 + axis] - before]
    stride = [s * e for s, e in zip(geometry.stride, every)]
    return F.pad(x, crop), y, geometry._replace(stride=stride, padding=[0, 0])


def variance_slope(
    x: Tensor,
    y: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor,
    geometry: Geometry,
    keep: int,
    offset: float,
) -> tuple[Tensor, int]:
    """Sum over positions of 2 (y - mean) patch, (C, K), that is M dvar / dw; and the number of positions.

    It is the convolution's weight gradient for the output gradient y - mean, which is normalised here
    so that float16 does not overflow.
    """
    if keep > 1:
        x, y, geometry = _lattice(x, y, geometry, keep, offset)
    eps = 1e-12
    work = y.dtype if y.is_cuda or y.dtype == mean.dtype else mean.dtype  # CPUs are slow in half precision
    y_hat = F.batch_norm(y.to(work), mean, var, None, None, False, 0.0, eps)
    x, scale = x.to(work), 2 * torch.sqrt(var + eps)
    if work == torch.float16:
        largest = x.abs().amax().clamp(min=1e-4)
        x, y_hat, scale = x / largest, y_hat / 32, scale * largest.float() * 32
    slope = torch.ops.aten.convolution_backward(
        y_hat, x, weight.detach().view(weight.shape[0], -1, *geometry.kernel).to(work), None,
        geometry.stride, geometry.padding, geometry.dilation, False, [0, 0], geometry.groups,
        [False, True, False],
    )[1]  # fmt: skip
    return slope.flatten(1).to(mean.dtype) * scale[:, None], y.numel() // y.shape[1]


def slopes_by_autograd(y: Tensor, mean: Tensor, var: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """M dmean / dw and M dvar / dw, both (C, K), through the graph from ``weight`` to y."""
    if not y.requires_grad:
        raise ValueError('CBN: y does not depend on the given weight; pass the weight that produced y')
    shape = (1, -1) + (1,) * (y.dim() - 2)
    small = (y.numel() // y.shape[1]) ** -0.75  # keeps float16 gradients between under- and overflow
    rstd = torch.rsqrt(var + 1e-12)
    with torch.enable_grad():
        y_hat = ((y - mean.view(shape)) * (rstd.view(shape) * small)).detach().to(y.dtype)
        try:
            (dmean,) = torch.autograd.grad(y, weight, torch.full_like(y, small), retain_graph=True)
            (dvar,) = torch.autograd.grad(y, weight, y_hat, retain_graph=True)
        except RuntimeError as error:
            raise ValueError(f'CBN: no derivative of y with respect to the given weight: {error}') from None
    dmean = dmean.flatten(1).to(mean.dtype) / small
    dvar = dvar.flatten(1).to(mean.dtype) * (2 / (small * rstd))[:, None]
    if y.dtype == torch.float16:  # a channel that overflowed all the same goes uncompensated
        dmean, dvar = (torch.nan_to_num(d, 0.0, 0.0, 0.0) for d in (dmean, dvar))
    return dmean, dvar


# -- statistics of one batch, and normalisation with its gradient -------------------------------------


def _full_precision(y: Tensor) -> torch.autocast:
    return torch.autocast(y.device.type, enabled=False)


def process_group(wanted: bool):
    """The group to pool statistics over, or None where there is one process."""
    if wanted and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return dist.group.WORLD
    return None


def batch_moments(y: Tensor, group=None) -> tuple[Tensor, Tensor, int]:
    """Mean and biased variance (C,) of this batch over all processes of ``group``, and its positions M.

    At least float32, whatever the type of y.
    """
    count = y.numel() // y.shape[1]
    if count:
        mean, var = _local_moments(y)
    else:
        mean = var = y.new_zeros(y.shape[1], dtype=torch.promote_types(y.dtype, torch.float32))
    if group is None:
        return mean, var, count
    wide, square = mean.double(), var.double() + mean.double().square()  # the square is subtracted again
    sums = torch.cat([wide * count, square * count, wide.new_tensor([count])])
    dist.all_reduce(sums, group=group)
    total = int(sums[-1])
    first, second = (sums[:-1] / max(total, 1)).chunk(2)
    return first.to(mean.dtype), (second - first.square()).clamp(min=0).to(mean.dtype), total


def _local_moments(y: Tensor) -> tuple[Tensor, Tensor]:
    if y.is_cuda:
        # One pass; 1 / sqrt(var + eps) turns back into var to float32's precision of var + eps.
        eps = 1e-12
        mean, rstd = torch.batch_norm_stats(y, eps)
        return mean, (rstd.double().pow(-2) - eps).clamp(min=0).to(mean.dtype)
    like = [None, None]
    if y.dtype in (torch.float16, torch.bfloat16):  # statistics have the type of the running ones
        like = [y.new_zeros(y.shape[1], dtype=torch.float32) for _ in range(2)]
    return torch.ops.aten.batch_norm_update_stats(y, *like, 0.0)


@torch.no_grad()
def track_running_stats(norm: _NormBase, mean: Tensor, var: Tensor, count: int) -> None:
    """BatchNorm's rule: a moving average of the batch's mean and unbiased variance; cumulative for momentum None."""
    if norm.running_mean is None:
        return
    norm.num_batches_tracked.add_(1)
    for running, value in ((norm.running_mean, mean), (norm.running_var, var * (count / (count - 1)))):
        value = value.to(running.dtype)
        rate = (1 / norm.num_batches_tracked).to(value.dtype) if norm.momentum is None else norm.momentum
        running.lerp_(value, rate)


class NormalizeWithPooled(torch.autograd.Function):
    """gamma (y - mean) / sqrt(var + eps) + beta, where 1/n of mean and var comes from y itself.

    Its gradient is BatchNorm's with the two mean terms divided by n:
    dy = gamma r (g - (sum g + y^ sum(g y^)) / (n M)),  r = 1 / sqrt(var + eps),  y^ = (y - mean) r.
    """

    @staticmethod
    def forward(ctx, y, mean, var, weight, bias, eps, entries, count, group):
        if y.is_cuda and not _channels_last(y):
            y = y.contiguous()  # the backward's kernels want one of the two layouts
        ctx.save_for_backward(y, mean, torch.rsqrt(var + eps), weight)
        ctx.entries, ctx.count, ctx.group = entries, count, group
        weight, bias = (None if t is None else t.to(mean.dtype) for t in (weight, bias))
        return F.batch_norm(y, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        y, mean, rstd, weight = ctx.saved_tensors
        n, wanted = ctx.entries, [ctx.needs_input_grad[i] for i in (0, 3, 4)]
        gamma = torch.ones_like(mean) if weight is None else weight.detach().to(mean.dtype)
        if y.is_cuda:
            grads = _backward_on_cuda(grad, y, mean, rstd, gamma, n * ctx.count, ctx.group, wanted)
        elif ctx.group is not None:
            grads = _backward_over_processes(grad, y, mean, rstd, gamma, n * ctx.count, ctx.group, wanted)
        else:
            # BatchNorm's own gradient divides by M alone: take 1/n of it and 1 - 1/n of gamma r g.
            grads = _batch_norm_backward(grad, y, mean, rstd, gamma / n, wanted)
            if wanted[0] and not (isinstance(n, int) and n == 1):
                grads[0].addcmul_(grad, _per_channel(gamma * rstd * (1 - 1 / n), y))
        return grads[0], None, None, *grads[1:], None, None, None, None


def _per_channel(t: Tensor, y: Tensor) -> Tensor:
    return t.view((1, -1) + (1,) * (y.dim() - 2))


def _batch_norm_backward(grad, y, mean, rstd, gamma, wanted):
    return torch.ops.aten.native_batch_norm_backward(
        grad, y, gamma, None, None, mean, rstd, True, 0.0, wanted
    )  # fmt: skip


def _backward_over_processes(grad, y, mean, rstd, gamma, count, group, wanted):
    if y.numel():
        _, sum_gy, sum_g = _batch_norm_backward(grad, y, mean, rstd, gamma, [False, True, True])
    else:
        sum_gy = sum_g = torch.zeros_like(mean)
    grad_weight, grad_bias = (part if want else None for part, want in zip((sum_gy, sum_g), wanted[1:]))
    both = torch.stack([sum_g, sum_gy])
    dist.all_reduce(both, group=group)  # by every process, whether or not its y wants a gradient
    if not wanted[0]:
        return None, grad_weight, grad_bias
    sum_g, sum_gy = both / count
    y_hat = F.batch_norm(y.to(mean.dtype), mean, rstd.pow(-2), None, None, False, 0.0, 0.0)
    inner = grad - _per_channel(sum_g, y) - y_hat * _per_channel(sum_gy, y)
    return (inner * _per_channel(gamma * rstd, y)).to(y.dtype), grad_weight, grad_bias


def _backward_on_cuda(grad, y, mean, rstd, gamma, count, group, wanted):
    grad = grad.contiguous(memory_format=torch.channels_last) if _channels_last(y) else grad.contiguous()
    sum_g, sum_gd, grad_weight, grad_bias = torch.batch_norm_backward_reduce(
        grad, y, mean, rstd, gamma, True, wanted[1], wanted[2]
    )
    if group is not None:
        both = torch.cat([sum_g, sum_gd])
        dist.all_reduce(both, group=group)
        sum_g, sum_gd = both.chunk(2)
    grad_y = None
    if wanted[0]:
        total = (
            count.to(torch.int32).view(1)
            if isinstance(count, Tensor)
            else torch.full_like(sum_g[:1], count, dtype=torch.int32)
        )
        grad_y = torch.batch_norm_backward_elemt(grad, y, mean, rstd, gamma, sum_g, sum_gd, total)
    return grad_y, grad_weight, grad_bias


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
        derivative_fraction: share of positions, 1 / integer, from which the variance's derivative is taken.
        sync: take each batch's statistics over all processes, as SyncBatchNorm does.
        full_gradient: BatchNorm's gradient, as if all entries were the current batch, instead of the paper's, which
            takes the past ones for constants. Trains far better from scratch (docs/cbn.md).

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
        self._handle = _HANDLES.new(self)

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
        own = (
            'buffer_num',
            'burnin',
            'burnin_iters',
            'rho',
            'compensation',
            'derivative_fraction',
            'sync',
            'full_gradient',
        )
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
        self,
        y: Tensor,
        weight: Tensor | None = None,
        *,
        conv: nn.Module | None = None,
        x: Tensor | None = None,
    ) -> Tensor:
        """Normalise y (N, C, H, W) or (N, C), the output of ``weight`` (C, ...), or of ``conv`` at ``x``."""
        if y.dim() not in (2, 3, 4, 5) or y.shape[1] != self.num_features:
            raise ValueError(f'CBN: input of shape {tuple(y.shape)} does not have {self.num_features} channels')
        if not self.training:
            batch_only = self.running_mean is None
            return F.batch_norm(
                y, self.running_mean, self.running_var, self.weight, self.bias, batch_only, 0.0, self.eps
            )
        source, self._source = self._source, None
        if weight is None and conv is None and source is not None:
            conv, x, made = source
            if made is not y:
                raise ValueError('CBN: the layer follows a convolution that did not return its input')
        group = process_group(self.sync)
        if y.numel() == 0 and group is None:
            # No RoI: nothing to learn from, but a connected graph.
            zero, one = y.new_zeros(y.shape[1]), y.new_ones(y.shape[1])
            return F.batch_norm(y, zero, one, self.weight, self.bias, False, 0.0, self.eps)
        geometry = Geometry.of(conv) if conv is not None and x is not None else None
        bias = None
        if conv is not None:
            weight, bias = conv.weight, conv.bias
        if weight is None and self.buffer_num:
            raise ValueError(
                'CBN: training needs the convolution: call norm(y, conv.weight) or norm.after(conv, x), '
                'or norm.follow(conv) once'
            )
        record = torch.is_grad_enabled()
        if torch.compiler.is_compiling() and geometry is not None:
            mean, var, pooled_mean, pooled_var, entries = torch.ops.mmdet.cbn_statistics(
                y.detach(),
                x.detach(),
                weight.detach(),
                None if bias is None else bias.detach(),
                *geometry,
                record,
                weight.requires_grad,
                self._handle,
            )
            count, fresh = y.numel() // y.shape[1], True
        else:
            with torch.no_grad(), _full_precision(y):
                mean, var, pooled_mean, pooled_var, entries, count, fresh = self._statistics(
                    y, x, weight, bias, geometry, record, weight is not None and weight.requires_grad, group
                )
        if self.full_gradient:
            entries = 1
        if count == 1:
            raise ValueError(f'CBN: one value per channel (input {tuple(y.shape)}) has no variance to train on')
        if fresh and count:
            track_running_stats(self, mean, var, count)
        return NormalizeWithPooled.apply(
            y, pooled_mean, pooled_var, self.weight, self.bias, self.eps, entries, count, group
        )

    def _statistics(self, y, x, weight, bias, geometry, record, trained, group=None):
        """Current and pooled mean and variance, entries n, positions M, and whether this is no recomputation.

        ``weight`` and ``bias`` are the convolution's; the window leaves the bias out, which shifts every
        batch alike.
        """
        mean, var, count = batch_moments(y.detach(), group)
        again = bool(self._recent) and torch._C._current_graph_task_id() != -1
        if again:
            # Activation checkpointing repeats a forward inside the backward pass: same numbers, same state.
            pooled_mean, pooled_var, entries, active, recorded = self._recall(mean)
        else:
            if self.burnin and self.epoch is None:
                self.epoch = 0
                warnings.warn(
                    f'CBN: burnin={self.burnin} epochs, but nothing tells the layer the epoch: register '
                    'CBNHook, call set_cbn_epoch(model, epoch) each epoch, or give burnin_iters instead',
                    stacklevel=4,
                )
            active = bool(self.buffer_num) and not self.burning_in
            pooled_mean, pooled_var, entries, recorded = mean, var, 1, False
            if active and self.window is not None and self.window.filled:
                own = mean if bias is None else mean - bias
                means, variances = self.window.under(self._flat(weight, mean), self.rho, self.compensation)
                pooled_mean, pooled_var = _pool(own, var, means, variances)
                pooled_mean = pooled_mean if bias is None else pooled_mean + bias
                entries = len(means) + 1
            self._recent.append((mean, pooled_mean, pooled_var, entries, active, record))
        if record and not recorded and count > 1:
            if active:
                own = mean if bias is None else mean - bias
                self._push(y, x, own, mean, var, count, weight, geometry, trained, group)
            self.steps += 1
        return mean, var, pooled_mean, pooled_var, entries, count, not again

    @staticmethod
    def _flat(weight: Tensor, like: Tensor) -> Tensor:
        return weight.detach().flatten(1).to(like.dtype)

    def _recall(self, mean: Tensor):
        distances = torch.stack([(mean - then[0]).abs().amax() for then in self._recent])
        index = int(distances.argmin())
        then = self._recent[index]
        self._recent[index] = (*then[:5], True)
        return then[1:]

    def _push(self, y, x, own, mean, var, count, weight, geometry, trained, group) -> None:
        keep = max(round(1 / self.derivative_fraction), 1)
        if not trained:  # a frozen weight never differs from itself
            dvar = torch.zeros_like(self._flat(weight, mean))
            dmean, thinned = dvar if geometry is None else dvar[: geometry.groups], count
        elif y.numel() == 0:  # other processes have RoIs
            dvar = torch.zeros_like(self._flat(weight, mean))
            dmean, thinned = dvar if geometry is None else dvar[: geometry.groups], 0
        elif geometry is None:
            dmean, dvar = slopes_by_autograd(y, mean, var, weight)
            thinned = y.numel() // y.shape[1]
        else:
            x_map, y_map = _as_map(x.detach()), _as_map(y.detach())
            dmean = patch_sum(x_map, y_map, geometry, mean.dtype)
            offset = self.steps * 0.6180339887498949 % 1  # golden ratio: no lattice is visited twice in a row
            dvar, thinned = variance_slope(x_map, y_map, mean, var, weight, geometry, keep, offset)
        if group is not None:
            parts = torch.cat([dmean.flatten(), dvar.flatten(), dvar.new_tensor([thinned])])
            dist.all_reduce(parts, group=group)
            dmean, dvar = (
                part.view_as(old) for part, old in zip(parts[:-1].split([dmean.numel(), dvar.numel()]), (dmean, dvar))
            )
            thinned = parts[-1]
        dmean, dvar = dmean / count, dvar / thinned
        if self.window is None or not self.window.fits(dmean, dvar):
            self.window = Window(self.buffer_num, dmean, dvar)
        self.window.push(own, var, dmean, dvar, self._flat(weight, mean))


def _pool(mean: Tensor, var: Tensor, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Statistics of the current batch (C,) and the past ones (S, C) together, each batch counted once."""
    means = torch.cat([mean[None], means])
    pooled = means.mean(0)
    within = torch.cat([var[None], variances]).mean(0)
    return pooled, within + (means - pooled).square().mean(0)


# -- torch.compile ------------------------------------------------------------------------------------


class _Handles:
    """Numbers for layers, by which a compiled graph finds the layer whose window it reads and extends."""

    def __init__(self) -> None:
        self.layers: weakref.WeakValueDictionary[int, CrossIterBatchNorm2d] = weakref.WeakValueDictionary()
        self.last = 0

    def new(self, layer: CrossIterBatchNorm2d) -> int:
        self.last += 1
        self.layers[self.last] = layer
        return self.last


_HANDLES = _Handles()


@torch.library.custom_op(
    'mmdet::cbn_statistics',
    mutates_args=(),
    # spelled out because torch 2.4 cannot read it off list[int]
    schema='(Tensor y, Tensor x, Tensor weight, Tensor? bias, int[] kernel, int[] stride, int[] padding, '
    'int[] dilation, int groups, bool record, bool trained, int handle) -> (Tensor, Tensor, Tensor, Tensor, Tensor)',
)
def _cbn_statistics(
    y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, kernel: list[int], stride: list[int],
    padding: list[int], dilation: list[int], groups: int, record: bool, trained: bool, handle: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """``CrossIterBatchNorm2d._statistics`` as one node of a graph, so that window, step count and burn-in
    change from call to call without a graph break or another compilation."""
    layer = _HANDLES.layers[handle]
    geometry = Geometry(kernel, stride, padding, dilation, groups)
    with _full_precision(y):
        mean, var, pooled_mean, pooled_var, entries, _, _ = layer._statistics(
            y, x, weight, bias, geometry, record, trained, process_group(layer.sync)
        )
    return mean, var, pooled_mean.clone(), pooled_var.clone(), mean.new_full((), entries)


@_cbn_statistics.register_fake
def _(y, x, weight, bias, kernel, stride, padding, dilation, groups, record, trained, handle):
    channel = y.new_empty(y.shape[1], dtype=torch.promote_types(y.dtype, torch.float32))
    return (*(torch.empty_like(channel) for _ in range(4)), channel.new_empty(()))


# -- state that is not in the state dict --------------------------------------------------------------


def cbn_layers(model: nn.Module) -> dict[str, CrossIterBatchNorm2d]:
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
        fits = saved is not None and len(saved['dvar']) == layer.buffer_num
        device = next(chain(layer.parameters(), layer.buffers()), torch.empty(0)).device
        layer.window = Window.from_state(saved, device) if fits else None
