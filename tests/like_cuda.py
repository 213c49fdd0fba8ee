"""CPU tensors treated as CUDA tensors are, where code and torch treat these otherwise.

Within `with LikeCuda():`

- `is_cuda` is True of every tensor, so that code that asks takes its branch for a GPU;
- torch's operators for CUDA alone that this project calls (`batch_norm_elemt` and its two backward ones) have CPU
  kernels that insist on the types CUDA's insist on, and `batch_norm_update_stats` gives float32 of half precision;
- `torch.autocast('cpu', dtype)` follows CUDA's lists of operators, which torch's header names, not the CPU's.

The compiled operators are the CPU's, unless tests/cuda_on_cpu has put the CUDA kernels in their place.
"""

import re
import warnings
from pathlib import Path

import torch
from torch import Tensor
from torch.library import Library, fallthrough_kernel
from torch.utils._pytree import tree_leaves, tree_map

AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)
FLOATS = (torch.float16, torch.bfloat16, torch.float32)


class LikeCuda:
    def __enter__(self):
        self.library = Library('aten', 'IMPL')
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', '.*[Oo]verrid.*')
            for name, kernel in _KERNELS.items():
                self.library.impl(name, kernel, 'CPU')
            for name, policy in autocast_policies().items():
                self.library.impl(name, policy, 'AutocastCPU')
        Tensor.is_cuda = property(lambda tensor: True)  # before the attribute of its base class
        self.capturing = torch.cuda.is_current_stream_capturing
        torch.cuda.is_current_stream_capturing = lambda: False  # it asks the driver
        return self

    def __exit__(self, *error):
        torch.cuda.is_current_stream_capturing = self.capturing
        del Tensor.is_cuda
        self.library._destroy()


# -- BatchNorm's parts, as SyncBatchNorm uses them -------------------------------------------------------------------


def _channel(t: Tensor, y: Tensor) -> Tensor:
    return t.view(1, -1, *[1] * (y.dim() - 2))


def _check(y: Tensor, *, statistics: list[Tensor], parameters: list[Tensor | None]) -> None:
    wide = torch.promote_types(y.dtype, torch.float32)
    assert all(t.dtype == wide and t.shape == (y.shape[1],) for t in statistics)
    assert len({t.dtype for t in parameters if t is not None}) <= 1
    assert all(t.dtype in (wide, y.dtype) and t.shape == (y.shape[1],) for t in parameters if t is not None)


def _last(y: Tensor) -> bool:
    """Whether the kernels for channels_last take it."""
    return y.is_contiguous(memory_format=torch.channels_last) if y.dim() == 4 else y.stride(1) == 1


def _update_stats(y, running_mean, running_var, momentum):
    assert running_mean is None and running_var is None and y.numel()
    wide = y.to(torch.promote_types(y.dtype, torch.float32))
    return torch.var_mean(wide, [d for d in range(y.dim()) if d != 1], correction=0)[::-1]


def _elemt(y, weight, bias, mean, rstd, eps):
    _check(y, statistics=[mean, rstd], parameters=[weight, bias])
    assert y.numel(), 'SyncBatchNorm takes care not to call it so'
    out = (y - _channel(mean, y)) * _channel(rstd, y)
    for t, function in ((weight, torch.mul), (bias, torch.add)):
        out = out if t is None else function(out, _channel(t, y))
    return torch.empty_like(y).copy_(out)


def _backward_reduce(grad, y, mean, rstd, weight, input_g, weight_g, bias_g):
    _check(y, statistics=[mean, rstd], parameters=[weight])
    assert grad.dtype == y.dtype and grad.shape == y.shape and y.numel()
    others = [d for d in range(y.dim()) if d != 1]
    wide = grad.to(mean.dtype)
    sum_g, sum_gd = wide.sum(others), (wide * (y - _channel(mean, y))).sum(others)
    return sum_g, sum_gd, (sum_gd * rstd).to(weight.dtype), sum_g.to(weight.dtype)


def _backward_elemt(grad, y, mean, rstd, weight, sum_g, sum_gd, count):
    _check(y, statistics=[mean, rstd, sum_g, sum_gd], parameters=[weight])
    assert count.dtype == torch.int32 and count.dim() == 1 and grad.dtype == y.dtype
    assert _last(grad) == _last(y), 'the kernel is chosen by grad alone'
    total = count.sum()
    inner = grad - _channel(sum_g / total, y) - (y - _channel(mean, y)) * _channel(rstd.square() * sum_gd / total, y)
    return torch.empty_like(y).copy_(inner * _channel(weight * rstd, y))


_KERNELS = {
    'batch_norm_update_stats': _update_stats,
    'batch_norm_elemt': _elemt,
    'batch_norm_backward_reduce': _backward_reduce,
    'batch_norm_backward_elemt': _backward_elemt,
}


# -- autocast --------------------------------------------------------------------------------------------------------


def autocast_policies() -> dict:
    """What AutocastCPU is to do with each operator that CUDA's lists or the CPU's name."""
    header = (Path(torch.__path__[0]) / 'include/ATen/autocast_mode.h').read_text()
    makers = dict(LOWER_PRECISION_FP=_lower, FP32=_float32, FP32_SET_OPT_DTYPE=_sum_in_float32, PROMOTE=_promote)
    policies = {}
    for packet in torch._C._dispatch_get_all_op_names():
        if packet.startswith('aten::') and torch._C._dispatch_has_kernel_for_dispatch_key(packet, 'AutocastCPU'):
            policies[packet.removeprefix('aten::')] = fallthrough_kernel
    for list_name, maker in makers.items():
        entries = re.search(rf'define AT_FORALL_{list_name}\(_\)(.*?[^\\])\n', header, re.S)[1]
        for name, overload in re.findall(r'_\((\w+)(?:, (\w+))?\)', entries):
            full = f'{name}.{overload}' if overload else name
            if torch._C._dispatch_has_kernel(f'aten::{full}'):
                policies[full] = maker(getattr(getattr(torch.ops.aten, name), overload or 'default'))
    policies['binary_cross_entropy'] = _refused
    assert len(policies) > 80
    return policies


def _called(op, dtype, args, kwargs):
    def cast(x):
        return x.to(dtype) if isinstance(x, Tensor) and x.dtype in FLOATS else x

    with torch._C._ExcludeDispatchKeyGuard(AUTOCAST):
        return op(*tree_map(cast, args), **tree_map(cast, kwargs))


def _lower(op):
    return lambda *args, **kwargs: _called(op, torch.get_autocast_dtype('cpu'), args, kwargs)


def _float32(op):
    return lambda *args, **kwargs: _called(op, torch.float32, args, kwargs)


def _sum_in_float32(op):
    names = [argument.name for argument in op._schema.arguments]

    def kernel(*args, **kwargs):
        given = dict(zip(names, args), **kwargs)
        if given[names[0]].dtype in FLOATS and given.get('dtype') is None:
            given['dtype'] = torch.float32
        with torch._C._ExcludeDispatchKeyGuard(AUTOCAST):
            return op(**given)

    return kernel


def _promote(op):
    def kernel(*args, **kwargs):
        lower = torch.get_autocast_dtype('cpu')
        wide = any(isinstance(x, Tensor) and x.dtype == torch.float32 for x in tree_leaves((args, kwargs)))
        return _called(op, torch.float32 if wide else lower, args, kwargs)

    return kernel


def _refused(*args, **kwargs):
    raise RuntimeError('torch.nn.functional.binary_cross_entropy is unsafe to autocast')
