"""CBN whose gradient also follows the compensated statistics of past batches to the current weight.

N, C, M     pictures (or RoIs); output channels; positions of one batch
S           past batches held
"""

import copy

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..registry import MODELS
from .cbn import CrossIterBatchNorm2d, _per_channel, _pool, batch_moments, process_group


class _AlsoThrough(torch.autograd.Function):
    """out = gamma (y - mean) / sqrt(var + eps) + beta, unchanged, with its gradients for mean and var (C,)."""

    @staticmethod
    def forward(ctx, out, mean, var, weight, bias, eps):
        ctx.save_for_backward(out, var, weight, bias)
        ctx.eps = eps
        return out.view_as(out)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        out, var, weight, bias = ctx.saved_tensors
        dims = [d for d in range(out.dim()) if d != 1]
        wide = grad.to(var.dtype)
        scaled = out.to(var.dtype) if bias is None else out - _per_channel(bias, out).to(var.dtype)
        total = wide.sum(dims) if weight is None else wide.sum(dims) * weight
        grad_mean = -total * torch.rsqrt(var + ctx.eps)
        grad_var = -0.5 * (wide * scaled).sum(dims) / (var + ctx.eps)
        return grad, grad_mean, grad_var, None, None, None


@MODELS.register_module()
class CBNThroughWindow(CrossIterBatchNorm2d):
    """CrossIterBatchNorm2d with the gradient through the whole window. Not the paper's: an experiment.

    The output is CBN's. A compensated statistic of a past batch is a function of the *current* weight, whose
    gradient the paper leaves out: it takes 1/n of BatchNorm's. Here the other n - 1 parts reach the layer's
    weight as well, from the derivatives that the window holds; pictures and layers of the past get none. With
    unchanged weights the weight's gradient is that of BatchNorm on all n batches at once. docs/norm_study.md has
    what it does to accuracy.

    Raises:
        ValueError: as CrossIterBatchNorm2d, and under activation checkpointing.
    """

    @torch.compiler.disable
    def forward(
        self, y: Tensor, weight: Tensor | None = None, *, conv: nn.Module | None = None, x: Tensor | None = None
    ) -> Tensor:
        """As CrossIterBatchNorm2d's; ``norm.follow(conv)`` gives the paper's gradient."""
        source = weight if conv is None else conv.weight
        pooled = None
        if self.training and torch.is_grad_enabled() and source is not None and source.requires_grad:
            if torch._C._current_graph_task_id() != -1:
                raise ValueError('CBNThroughWindow: activation checkpointing repeats forwards; use CBN instead')
            pooled = self._pooled(y, source, None if conv is None else conv.bias)
        out = super().forward(y, weight, conv=conv, x=x)
        if pooled is None:
            return out
        constants = (None if t is None else t.detach() for t in (self.weight, self.bias))
        return _AlsoThrough.apply(out, *pooled, *constants, self.eps)

    def _pooled(self, y: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """Pooled mean and variance as functions of ``weight``; None while there is no past."""
        if self.window is None or not self.window.filled or self.burning_in or not y.numel():
            return None
        mean, var, _ = batch_moments(y.detach(), process_group(self.sync))
        if bias is not None:
            mean = mean - bias.detach()
        window = copy.copy(self.window)
        window.to(torch.clone)  # the ring is overwritten before the backward pass
        past = window.under(weight.flatten(1).to(mean.dtype), self.rho, self.compensation)
        pooled_mean, pooled_var = _pool(mean, var, *past)
        return (pooled_mean if bias is None else pooled_mean + bias.detach()), pooled_var
