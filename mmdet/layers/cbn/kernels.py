"""The same arithmetic by the toolbox's compiled operators (mmdet/ops/cbn.py), which launch few kernels on a GPU.

``in_closed_form`` and ``pool`` stand for those of derivatives.py and history.py, and ``forward`` is a whole training
forward with its gradient as one operator.
"""

from functools import lru_cache

import torch
from torch import Tensor

from ..batch_stats import Moments
from . import derivatives as plain
from .derivatives import ConvCall, Geometry, Grid
from .history import History, Pooled

ENABLED = False  # whether torch.ops.mmdet has the operators of this version; mmdet.layers says so


def take(y: Tensor) -> bool:
    """Whether there are kernels for y's device."""
    return ENABLED and _for_device(y.device.type)


@lru_cache
def _for_device(device: str) -> bool:
    key = {'cpu': 'CPU', 'cuda': 'CUDA'}.get(device)
    return key is not None and torch._C._dispatch_has_kernel_for_dispatch_key('mmdet::cbn_pool', key)


def in_closed_form(x: Tensor, y: Tensor, batch: Moments, geometry: Geometry, grid: Grid) -> Tensor:
    if plain.gathers(geometry, grid):
        return torch.ops.mmdet.cbn_derivatives(x, y, batch.mean, *geometry, *grid)
    return plain.in_closed_form(x, y, batch, geometry, grid)


def pool(
    history: History | None, batch: Moments, call: ConvCall, derivatives: Tensor | None,
    rho: float, compensation: str, full_gradient: bool,
) -> Pooled:  # fmt: skip
    *held, filled, slot = _held(history)
    weight = None if call.weight is None else call.weight.detach().contiguous()
    mean, var, _, _, dmean, *found = torch.ops.mmdet.cbn_pool(
        weight, batch.mean, batch.var, call.bias, *held, derivatives, None, None, None, 0.0, filled, slot,
        1, rho, compensation == 'root', full_gradient, 0.0,
    )  # fmt: skip
    if derivatives is not None:
        history.dmean = dmean
        history.advance()
    return Pooled(batch, mean, var, filled + 1, *(found if found[1].numel() else ()))


def forward(norm, y: Tensor, call: ConvCall, record: bool) -> Tensor | None:
    """None where it does not serve, and ``norm._statistics`` and ``Normalize`` have to."""
    running, geometry = norm.running_mean, call.geometry
    if geometry is None or not take(y) or norm._repeats() or y.numel() == y.shape[1]:
        return None
    if running is not None and running.dtype != torch.promote_types(y.dtype, torch.float32):
        return None
    compensates = call.trained and norm.rho
    groups, width = (geometry.groups, call.weight[0].numel()) if compensates else (1, 0)
    shape = groups, y.shape[1] // groups + 1, width
    if norm.history is not None and not norm.history.fits(shape):
        return None
    active = norm._pools(y)
    history, enters = norm.history if active else None, record and active
    x = sample = rows = columns = None
    grid = (), ()
    if enters:
        if history is None:
            history = norm.history = History(norm.buffer_num, shape, y)
        if compensates:
            x, sample, grid = plain.as_map(call.x), plain.as_map(y), norm._grid(y)
            if not plain.gathers(geometry, grid):
                with torch.no_grad():
                    x, sample, geometry = plain.subsample(x, sample, geometry, grid)
                    rows, columns = plain.kernel_offsets(x, sample, geometry, history.dvar.dtype)
                grid = (), ()
    *held, filled, slot = _held(history)
    out, batch_mean, mean, var, dmean = torch.ops.mmdet.cbn_train(
        y, call.weight, call.bias, norm.weight, norm.bias, x, sample, *geometry, *grid, rows, columns, *held, running,
        norm.running_var, norm.num_batches_tracked, norm.momentum, filled, slot, enters, norm.rho,
        norm.compensation == 'root', norm.full_gradient and record and call.trained, norm.eps,
    )  # fmt: skip
    if enters:
        history.dmean = dmean
        history.advance()
    norm._remember(Pooled(Moments(batch_mean, None, y.numel() // y.shape[1]), mean, var, filled + 1), record)
    return out


def _held(history: History | None) -> tuple:
    """What the operators take of the history: three tensors, the batches held, the next one's place."""
    if history is None:
        return None, None, None, 0, 0
    return history.values, history.dmean, history.dvar, history.filled, history.slot
