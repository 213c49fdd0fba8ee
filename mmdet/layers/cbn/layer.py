"""Cross-Iteration Batch Normalization (arXiv 2002.05712): BatchNorm with statistics pooled over past iterations.

    N, C, M     images (or RoIs); output channels; values per channel of one batch, M = N * H * W
    G, K        groups of the convolution; weights of one output channel, K = C_in / G * kh * kw
    S           past batches held, at most ``buffer_num``;  n = S + 1 entries are pooled

A convolution's output is linear in its weight, so what a past batch would give *under today's weight* is known without
its images: the mean exactly, the variance to first order (equations 5 to 8). With D the weight's change since then:

    mean'  =  mean + rho <dmean/dw, D>                                  derivatives.py
    var'   =  var + rho <dvar/dw, D> - (rho <dmean/dw, D>)^2            history.py
    out    =  gamma (y - m) / sqrt(v + eps) + beta                      ../batch_stats.py, with its gradient

m is the average of the n means, and v that of the n variances plus the variance of the means. This folder and
../batch_stats.py need torch alone, and can be copied into a package of another project.
"""

import math
import warnings
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ..batch_stats import Moments, Normalize, batch_moments, process_group, track_running_stats
from . import compile, derivatives, history, kernels
from .derivatives import ConvCall, Grid
from .history import History, Pooled, PooledOf


def _full_precision(y: Tensor) -> torch.autocast:
    return torch.autocast(y.device.type, enabled=False)


class CrossIterBatchNorm2d(_NormBase):
    """BatchNorm2d whose training statistics are pooled over the last ``buffer_num + 1`` iterations.

    Parameters, buffers, state-dict keys, running statistics (of the current batch alone) and eval mode are
    BatchNorm2d's. Training mode must know the convolution, in one of these ways, with equal numbers:

        norm.after(conv, x)        runs conv and norm; derivatives in closed form
        norm.follow(conv)          once; from then on ``norm(conv(x))`` does the same
        norm(y, weight)            any differentiable y(weight); derivatives through autograd, slower

    Every training forward with gradient is one entry of the history: so is each micro-batch of gradient
    accumulation, and each call of a layer that is used several times in one iteration.

    Args:
        buffer_num: past batches pooled; 0 is BatchNorm2d.
        burnin: epochs during which the layer is BatchNorm2d; the Runner's ``CBNHook`` or ``set_cbn_epoch`` counts them.
        burnin_iters: training forwards during which the layer is BatchNorm2d.
        rho: strength of the compensation; 0 pools past statistics as they were.
        compensation: 'taylor' (the paper) or 'root', first order in the root of the second moment.
        derivative_fraction: share of positions, 1 / integer, from which the derivatives are taken.
        sync: take each batch's statistics over all processes, as SyncBatchNorm does.
        full_gradient: let the weight's gradient also go through the past statistics, which the paper takes for
            constants. With unchanged weights it is then BatchNorm's on all batches of the history. Trains far better
            from scratch and on correlated batches (docs/cbn.md); holds one more tensor of the weight's size until the
            backward pass.

    Raises:
        ValueError: an option out of range; in training mode an unknown weight, a y that does not depend on it, one
            value per channel, or activation checkpointing of a layer that is called several times.

    It derives from BatchNorm's base class but not from ``_BatchNorm``: ``convert_sync_batchnorm`` (``sync_bn=`` of a
    config) silently replaces every layer that does.

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
        for name, value, fits, wanted in (
            ('buffer_num', buffer_num, isinstance(buffer_num, int) and buffer_num >= 0, 'an integer of at least 0'),
            ('burnin', burnin, burnin is None or isinstance(burnin, Real) and burnin >= 0, 'a number of at least 0'),
            ('burnin_iters', burnin_iters, isinstance(burnin_iters, Real) and burnin_iters >= 0,
             'a number of at least 0'),
            ('rho', rho, isinstance(rho, Real) and math.isfinite(rho), 'a finite number'),
            ('compensation', compensation, compensation in ('taylor', 'root'), "'taylor' or 'root'"),
            ('derivative_fraction', derivative_fraction,
             isinstance(derivative_fraction, Real) and 0 < derivative_fraction <= 1, 'a number in (0, 1], as 0.25'),
            ('sync', sync, sync in (True, False), 'True or False'),
            ('full_gradient', full_gradient, full_gradient in (True, False), 'True or False'),
        ):  # fmt: skip
            if not fits:
                raise ValueError(f'CBN: {name}={value!r} must be {wanted}')
        self.buffer_num = buffer_num
        self.burnin = burnin
        self.burnin_iters = burnin_iters
        self.rho = rho
        self.compensation = compensation
        self.derivative_fraction = derivative_fraction
        self.sync = sync
        self.full_gradient = full_gradient
        # Plain attributes: as buffers they would be published, broadcast by DDP and averaged over processes.
        self.history: History | None = None
        self.steps = 0  # training forwards with gradient
        self.epoch: int | None = None
        self._forget()

    def extra_repr(self) -> str:
        own = 'buffer_num burnin burnin_iters rho compensation derivative_fraction sync full_gradient'.split()
        return ', '.join([super().extra_repr(), *(f'{name}={getattr(self, name)}' for name in own)])

    # -- ways to know the convolution

    def after(self, conv: nn.Module, x: Tensor) -> Tensor:
        """``self(conv(x))`` with derivatives in closed form."""
        return self(conv(x), conv=conv, x=x)

    def follow(self, conv: nn.Module) -> 'CrossIterBatchNorm2d':
        """From now on ``self(conv(x))`` takes ``conv`` and x from ``conv``'s last call."""
        conv.register_forward_hook(self._remember_call)
        return self

    def unfollow(self, conv: nn.Module) -> None:
        for key, hook in list(conv._forward_hooks.items()):
            if getattr(hook, '__self__', None) is self:
                del conv._forward_hooks[key]

    def _remember_call(self, conv: nn.Module, inputs: tuple, y: Tensor) -> None:
        if self.training:
            self._call = conv, inputs[0], y

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
        if self._call is not None:
            remembered, self._call = self._call, None
            if weight is None and conv is None:
                conv, x, made = remembered
                if made is not y:
                    raise ValueError('CBN: the layer follows a convolution that did not return its input')
        call, group = ConvCall.of(weight, conv, x), process_group(self.sync)
        compiling, record = torch.compiler.is_compiling(), torch.is_grad_enabled()
        if compiling and (group is not None or call.geometry is None):
            from .uncompiled import uncompiled

            return uncompiled(self, y, weight, conv=conv, x=x)
        if y.numel() == 0 and group is None:  # no RoI: nothing to learn from, but a connected graph
            zero, one = y.new_zeros(y.shape[1]), y.new_ones(y.shape[1])
            return F.batch_norm(y, zero, one, self.weight, self.bias, False, 0.0, self.eps)
        if call.weight is None and self.buffer_num:
            ways = 'call norm(y, conv.weight) or norm.after(conv, x), or norm.follow(conv) once'
            raise ValueError(f'CBN: training needs the convolution: {ways}')
        if compiling:
            pooled = compile.statistics(self, y, call, record)
        elif group is None and (out := kernels.forward(self, y, call, record)) is not None:
            return out
        else:
            pooled = self._statistics(y, call, record, group)
        mean, var = pooled.mean, pooled.var
        if pooled.dmean is not None:
            mean, var = PooledOf.apply(call.weight, mean, var, pooled.dmean, pooled.dvar)
        return Normalize.apply(
            y, mean, var, self.weight, self.bias, self.eps, pooled.entries, pooled.batch.count, group
        )

    @torch.no_grad()
    def _statistics(self, y: Tensor, call: ConvCall, record: bool, group=None, track: bool = True) -> Pooled:
        """The statistics to normalise y with. If ``record``, y enters the history; if ``track``, the running ones."""
        with _full_precision(y):
            batch = batch_moments(y, group)
            if not isinstance(batch.count, Tensor) and batch.count < 2:
                if batch.count:
                    raise ValueError(f'CBN: one value per channel (input {tuple(y.shape)}) has no variance to train '
                                     'on: larger images, more in a batch, or GN')
                return Pooled(batch, batch.mean, batch.var, 1)  # no process has RoIs
            repeats = self._repeats()
            if repeats and (known := self._repeated(batch, record)) is not None:
                return known
            active = self._pools(y)
            found = self._derivatives(y, batch, call, group) if record and active else None
            if found is not None and self.history is None:
                self.history = History(self.buffer_num, found.shape, found)
            past = self.history if active else None
            fits = found is not None and past.fits(found.shape)
            pooled = (kernels if kernels.take(y) else history).pool(
                past, batch, call, found if fits else None, self.rho, self.compensation,
                self.full_gradient and record and call.trained,
            )  # fmt: skip
            if found is not None and not fits:  # as when the weight is no longer frozen
                self.history = History(self.buffer_num, found.shape, found)
                self.history.add(batch, call, found)
            if track and not repeats:
                track_running_stats(self, batch)
            self._remember(pooled, record)
            return pooled

    def _derivatives(self, y: Tensor, batch: Moments, call: ConvCall, group=None) -> Tensor:
        """Of ``batch``, (G, C / G + 1, K)."""
        if not (call.trained and self.rho):  # nothing to compensate for
            return batch.mean.new_zeros(1, self.num_features + 1, 0)
        in_closed_form = (kernels if kernels.take(y) else derivatives).in_closed_form
        return derivatives.batch_derivatives(y, batch, call, self._grid(y), group, in_closed_form)

    def _grid(self, y: Tensor) -> Grid:
        """The positions of y that the derivatives are taken from this time."""
        factor = max(round(1 / self.derivative_fraction), 1)
        index = int(self.steps * 0.6180339887498949 % 1 * factor)  # golden ratio: no grid twice in a row
        return derivatives.subsampling_grid(len(y), *derivatives.as_map(y).shape[2:], factor, index)

    @property
    def burning_in(self) -> bool:
        """Whether the layer is still BatchNorm2d."""
        return self.steps < self.burnin_iters or bool(self.burnin and (self.epoch or 0) < self.burnin)

    def _pools(self, y: Tensor) -> bool:
        """Whether past batches count in this forward."""
        if y.is_cuda and torch.cuda.is_current_stream_capturing():
            raise ValueError('CBN: a CUDA graph would always write to one place of the history, do not capture it')
        if self.burnin and self.epoch is None:
            self.epoch = 0
            warnings.warn(
                f'CBN: burnin={self.burnin} epochs, but nothing tells the layer the epoch: register '
                'CBNHook, call set_cbn_epoch(model, epoch) each epoch, or give burnin_iters instead',
                stacklevel=5,
            )
        return bool(self.buffer_num) and not self.burning_in

    # -- activation checkpointing repeats a forward, inside the backward pass

    def _repeats(self) -> bool:
        return self._last is not None and torch._C._current_graph_task_id() != -1

    def _repeated(self, batch: Moments, record: bool) -> Pooled | None:
        """The statistics that this forward had; None where it has not entered the history (reentrant checkpointing)."""
        pooled, recorded = self._last
        moved = (batch.mean - pooled.batch.mean).abs()
        if (moved > 1e-3 * pooled.var.sqrt() + 1e-5 * batch.mean.abs()).any():
            raise ValueError(
                'CBN: activation checkpointing repeats a forward that is not the last one of this layer; '
                'do not checkpoint a layer that is called several times before the backward pass'
            )
        return pooled if recorded or not record else None

    def _remember(self, pooled: Pooled, recorded: bool) -> None:
        self.steps += recorded
        self._last = pooled._replace(dmean=None, dvar=None), recorded

    # -- copies and devices

    def _forget(self) -> None:
        """Drop what links the layer to forwards in progress; take a key of its own for compiled graphs."""
        self._call: tuple[nn.Module, Tensor, Tensor] | None = None
        self._last: tuple[Pooled, bool] | None = None
        self._key = compile.register(self)

    def __getstate__(self) -> dict:
        return {k: v for k, v in super().__getstate__().items() if k not in ('_call', '_last', '_key')}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._forget()

    def _apply(self, fn, recurse: bool = True):
        super()._apply(fn, recurse)
        if self.history is not None:
            self.history.to(fn)
        self._last = None
        return self
