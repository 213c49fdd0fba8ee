"""What layers with batch statistics share: moments over processes, running statistics, normalisation with its gradient.

    N, C, M    images (or RoIs); channels; values per channel behind the statistics, of all processes

Needs torch alone. ``mmdet/layers/cbn`` stands on this file and can be copied into another project together with it.
The toolbox's compiled operators (mmdet/ops/batch_norm.py) serve for channels-last maps on the CPU, where PyTorch's
kernels sum in the input's precision: float32 loses two digits.
"""

from functools import partial
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _NormBase

ENABLED = False  # whether torch.ops.mmdet has the operators of this version; mmdet.layers says so


class Moments(NamedTuple):
    """Mean and biased variance (C,), at least float32, and M.

    M is a tensor where the process itself has several values and others may have more, so that the host does not wait
    for a GPU to learn what it need not know.
    """

    mean: Tensor
    var: Tensor
    count: int | Tensor


def process_group(wanted: bool):
    """The group to take statistics over, or None where there is one process."""
    if wanted and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return dist.group.WORLD
    return None


def compiled_for(y: Tensor, dense: bool = False) -> bool:
    """Whether the compiled operators serve for y (N, C, ...); `dense` says that its channels lie together."""
    return (
        ENABLED and not y.is_cuda and y.device.type == 'cpu' and (dense or channels_last(y)) and y.numel() > 0
        and y.dtype in (torch.float32, torch.float64, torch.bfloat16) and not torch.compiler.is_compiling()
    )  # fmt: skip


def channel_sums(y: Tensor, dtype: torch.dtype) -> Tensor:
    """Of y (N, C, ...), (C,) in `dtype`, without a copy of y in that type where the compiled operators serve."""
    if y.dtype != dtype and compiled_for(y, dense=y.dim() == 2 and y.is_contiguous()):
        return (torch.ops.mmdet.batch_moments(y)[0] * (y.numel() // y.shape[1])).to(dtype)
    return y.sum([0, *range(2, y.dim())], dtype=dtype)


def batch_moments(y: Tensor, group=None) -> Moments:
    """Of y (N, C, ...) over all processes of ``group``."""
    count, wide = y.numel() // y.shape[1], torch.promote_types(y.dtype, torch.float32)
    if compiled_for(y):
        mean, var = torch.ops.mmdet.batch_moments(y)
    elif count:
        # On CPU the results have the type of the running statistics, which stay what they are at momentum 0.
        like = [None if y.is_cuda or wide == y.dtype else y.new_zeros(y.shape[1], dtype=wide)] * 2
        mean, var = torch.ops.aten.batch_norm_update_stats(y, *like, 0.0)
    else:
        mean = var = y.new_zeros(y.shape[1], dtype=wide)
    if group is None:
        return Moments(mean, var, count)
    first, second = mean.double(), var.double() + mean.double().square()  # the square is subtracted again
    sums = torch.cat([first * count, second * count, first.new_full((1,), count)])
    dist.all_reduce(sums, group=group)
    total = sums[-1] if count > 1 else int(sums[-1])
    first, second = (sums[:-1] / sums[-1].clamp(min=1)).chunk(2)
    return Moments(first.to(mean.dtype), (second - first.square()).clamp(min=0).to(mean.dtype), total)


@torch.no_grad()
def track_running_stats(norm: _NormBase, batch: Moments) -> None:
    """BatchNorm's rule: a moving average of the batch's mean and unbiased variance; cumulative for momentum None."""
    if norm.running_mean is None:
        return
    norm.num_batches_tracked.add_(1)
    unbiased = batch.var * (batch.count / (batch.count - 1))
    for running, value in ((norm.running_mean, batch.mean), (norm.running_var, unbiased)):
        value = value.to(running.dtype)
        rate = norm.num_batches_tracked.to(value.dtype).reciprocal() if norm.momentum is None else norm.momentum
        running.lerp_(value, rate)


class Normalize(torch.autograd.Function):
    """gamma (y - mean) / sqrt(var + eps) + beta, where 1 / entries of mean and var comes from y itself.

    Its gradient is BatchNorm's with the two mean terms divided by n = entries:
    dy = gamma r (g - (sum g + y^ sum(g y^)) / (n M)),  r = 1 / sqrt(var + eps),  y^ = (y - mean) r.
    mean and var get the gradients of what does not come from y: -gamma r sum g and -gamma r^2 sum(g y^) / 2.
    """

    @staticmethod
    def forward(ctx, y, mean, var, weight, bias, eps, entries, count, group):
        if y.is_cuda and not channels_last(y):
            y = y.contiguous()  # the backward's kernels want one of the two layouts
        rstd = torch.rsqrt(var + eps)
        ctx.save_for_backward(y, mean, rstd, weight)
        ctx.entries, ctx.count, ctx.group = entries, count, group
        weight, bias = (None if t is None else t.to(mean.dtype) for t in (weight, bias))
        if y.is_cuda and y.numel() and not torch.compiler.is_compiling():  # else the root would be taken again
            return torch.batch_norm_elemt(y, weight, bias, mean, rstd, eps)
        return F.batch_norm(y, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        y, mean, rstd, weight = ctx.saved_tensors
        n, (of_y, of_mean, of_var, of_weight, of_bias, *_) = ctx.entries, ctx.needs_input_grad
        wanted = [of_y, of_weight or of_var, of_bias or of_mean]
        gamma = torch.ones_like(mean) if weight is None else weight.detach().to(mean.dtype)
        # A compiled graph takes plain BatchNorm's gradient, which it can fuse and trace with sizes that change.
        compiled = compiled_for(y)
        if ctx.group is not None or compiled or (y.is_cuda and not torch.compiler.is_compiling()):
            backward = _backward_by_compiled if compiled else partial(_backward_by_sums, cuda=y.is_cuda)
            grad_y, sum_gy, sum_g = backward(grad, y, mean, rstd, gamma, n * ctx.count, ctx.group, wanted)
        else:
            # BatchNorm's own gradient divides by M alone: take 1/n of it and 1 - 1/n of gamma r g.
            grad_y, sum_gy, sum_g = _batch_norm_backward(grad, y, mean, rstd, gamma / n, wanted)
            if of_y and not (isinstance(n, int) and n == 1):
                grad_y.addcmul_(grad, per_channel(gamma * rstd * (1 - 1 / n), y))
        grads = (
            grad_y if of_y else None,
            -(gamma * rstd * sum_g) if of_mean else None,
            -(gamma * rstd.square() * sum_gy / 2) if of_var else None,
            sum_gy if of_weight else None,
            sum_g if of_bias else None,
        )
        return *grads, *[None] * 4


def per_channel(t: Tensor, y: Tensor) -> Tensor:
    """(C,) -> (1, C, 1, ...), of as many axes as y."""
    return t.view((1, -1) + (1,) * (y.dim() - 2))


def _batch_norm_backward(grad, y, mean, rstd, gamma, wanted):
    return torch.ops.aten.native_batch_norm_backward(grad, y, gamma, None, None, mean, rstd, True, 0.0, wanted)


def _backward_by_compiled(grad, y, mean, rstd, gamma, count, group, wanted):
    """What `_backward_by_sums` computes, of channels-last maps on the CPU."""
    grad = grad.contiguous(memory_format=torch.channels_last)
    own = sums = torch.stack(torch.ops.mmdet.batch_norm_sums(grad, y, mean))
    if group is not None:
        sums = own.clone()
        dist.all_reduce(sums, group=group)
    grad_y = None
    if wanted[0]:
        shift, slope = sums / count
        grad_y = torch.ops.mmdet.batch_norm_input_grad(grad, y, mean, gamma * rstd, shift, slope * rstd.square())
    return grad_y, own[1] * rstd, own[0]


def _backward_by_sums(grad, y, mean, rstd, gamma, count, group, wanted, cuda):
    """The two sums, all processes' together, and then dy; on CUDA with SyncBatchNorm's kernels."""
    if cuda:
        grad = grad.contiguous(memory_format=torch.channels_last) if channels_last(y) else grad.contiguous()
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
        of_mean, of_var = (per_channel(part / count, y) for part in (sum_g, sum_gd * rstd.square()))
        inner = grad - of_mean - (y - per_channel(mean, y)) * of_var
        grad_y = (inner * per_channel(gamma * rstd, y)).to(y.dtype)
    return grad_y, grad_weight if wanted[1] else None, grad_bias if wanted[2] else None


def channels_last(y: Tensor) -> bool:
    return y.dim() == 4 and y.is_contiguous(memory_format=torch.channels_last) and not y.is_contiguous()
