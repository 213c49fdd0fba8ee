"""torch.compile: the statistics are one node of the graph, so that history, step count and burn-in change from call to
call without a graph break or another compilation."""

import itertools
import weakref

import torch
from torch import Tensor, nn

from ..batch_stats import Moments, track_running_stats
from .derivatives import ConvCall, Geometry
from .history import Pooled

# Keys by which a compiled graph finds the layer whose history it reads and extends.
_LAYERS: weakref.WeakValueDictionary[int, nn.Module] = weakref.WeakValueDictionary()
_KEYS = itertools.count(1)

# torch.compile's CUDA graphs leave the operator out, where torch (2.8 and newer) can: a replay runs no Python.
_TAGS = dict(tags=(torch.Tag.cudagraph_unsafe,)) if hasattr(torch.Tag, 'cudagraph_unsafe') else {}


def register(norm: nn.Module) -> int:
    """A key for the layer; its copies need their own."""
    key = next(_KEYS)
    _LAYERS[key] = norm
    return key


_PROJECT = __name__.partition('.')[0]  # a copy of this folder in another one has an operator of its own


@torch.library.custom_op(
    f'{_PROJECT}::cbn_statistics',
    mutates_args=(),
    **_TAGS,
    schema='(Tensor y, Tensor x, Tensor weight, Tensor? bias, int[] kernel, int[] stride, int[] padding, '
    'int[] dilation, int groups, bool record, bool trained, bool full_gradient, int key) '
    '-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)',
)
def cbn_statistics(y, x, weight, bias, kernel, stride, padding, dilation, groups, record, trained, full_gradient, key):
    """Mean and variance of the batch, then pooled; entries; derivatives of the pooled by the past batches."""
    call = ConvCall(weight, bias, x, Geometry(kernel, stride, padding, dilation, groups), trained)
    pooled = _LAYERS[key]._statistics(y, call, record, track=False)
    (mean, var, _), found = pooled.batch, (pooled.dmean, pooled.dvar)
    if found[0] is None:
        found = (mean.new_zeros(shape) for shape in _shapes(weight, groups, full_gradient))
    return mean, var, pooled.mean.clone(), pooled.var.clone(), mean.new_full((), pooled.entries), *found


_operator = getattr(torch.ops, _PROJECT).cbn_statistics


@cbn_statistics.register_fake
def _(y, x, weight, bias, kernel, stride, padding, dilation, groups, record, trained, full_gradient, key):
    channel = y.new_empty(y.shape[1], dtype=torch.promote_types(y.dtype, torch.float32))
    found = (channel.new_empty(shape) for shape in _shapes(weight, groups, full_gradient))
    return *(torch.empty_like(channel) for _ in range(4)), channel.new_empty(()), *found


def _shapes(weight: Tensor, groups: int, full_gradient: bool):
    """(G, K) and (C, K), or nothing."""
    width = weight.shape[1:].numel() if full_gradient else 0
    return (groups, width), (weight.shape[0], width)


def statistics(norm: nn.Module, y: Tensor, call: ConvCall, record: bool) -> Pooled:
    """``norm._statistics`` within a graph; the running statistics are the graph's."""
    full_gradient = norm.full_gradient and record and call.trained
    tensors = [None if t is None else t.detach() for t in (y, call.x, call.weight, call.bias)]
    mean, var, pooled_mean, pooled_var, entries, *found = _operator(
        *tensors, *call.geometry, record, call.trained, full_gradient, norm._key
    )
    batch = Moments(mean, var, y.numel() // y.shape[1])
    track_running_stats(norm, batch)
    return Pooled(batch, pooled_mean, pooled_var, entries, *(found if full_gradient else ()))
