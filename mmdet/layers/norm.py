"""Normalisation layers by name: ``norm_cfg = dict(type=NAME, ...)``, NAME one of `NORM_NAMES`.

N, C, H, W    images (or RoIs), channels, height, width
"""

import inspect

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from mmdet.config.errors import UserError
from mmdet.layers.batch_renorm import BatchRenorm
from mmdet.layers.batch_stats import (
    Normalize,
    batch_moments,
    channels_last,
    compiled_for,
    process_group,
    track_running_stats,
)
from mmdet.layers.build import build_layer, layer_class
from mmdet.layers.cbn import CrossIterBatchNorm2d
from mmdet.layers.moving_average_norm import MovingAverageBatchNorm2d
from mmdet.registry import MODELS


class BatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d whose training on channels-last maps on the CPU is as exact as on planar ones.

    The gradient of that case cannot be differentiated again.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        if self.training and isinstance(x, Tensor) and compiled_for(x):
            return _train(self, x)
        return super().forward(x)

    def _check_input_dim(self, x: Tensor) -> None:
        if isinstance(x, Tensor):  # torch.fx traces through a class that is not torch's own
            super()._check_input_dim(x)


class SyncBN(_BatchNorm):
    """BatchNorm2d over all processes, on CPU (gloo) as well as on CUDA; BatchNorm2d where there is one process.

    On CUDA it runs nn.SyncBatchNorm's own forward. It does not derive from that class, because
    DistributedDataParallel refuses models on CPU that contain one.
    """

    process_group = None
    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2 or x.shape[1] != self.num_features:
            raise ValueError(f'SyncBN: input of shape {tuple(x.shape)} does not have {self.num_features} channels')

    def forward(self, x: Tensor) -> Tensor:
        group = process_group(self.training)
        if group is None and not (self.training and compiled_for(x)):
            return super().forward(x)
        if x.is_cuda:
            return nn.SyncBatchNorm.forward(self, x)
        self._check_input_dim(x)
        return _train(self, x, group)


def _train(norm: _BatchNorm, x: Tensor, group=None) -> Tensor:
    batch = batch_moments(x.detach(), group)
    if batch.count < 2:
        raise UserError(
            f'{type(norm).__name__}: {batch.count} values per channel over all processes; training needs two'
        )
    if norm.track_running_stats:
        track_running_stats(norm, batch)
    return Normalize.apply(x, batch.mean, batch.var, norm.weight, norm.bias, norm.eps, 1, batch.count, group)


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm that computes small bfloat16 channels-last maps, such as RoIs, on the CPU in float32.

    PyTorch's kernels take 1.6 to 5 times as long there (torch 2.14: docs/benchmarks.md). Can go when they do not.
    """

    positions = 4096  # of a map; larger ones are as fast in bfloat16

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        slow = not torch.compiler.is_compiling() and x.dtype == torch.bfloat16 and x.device.type == 'cpu'
        if slow and channels_last(x) and 0 < x.numel() and x.shape[2] * x.shape[3] <= self.positions and self.affine:
            return _WideGroupNorm.apply(x, self.weight, self.bias, self.num_groups, self.eps)
        return super().forward(x)


class _WideGroupNorm(torch.autograd.Function):
    """Group norm of (N, C, H, W) by PyTorch's float32 kernels, where x itself is kept for the gradient."""

    @staticmethod
    def forward(ctx, x, weight, bias, groups, eps):
        ctx.sizes = *x.shape[:2], x.shape[2] * x.shape[3], groups
        wide, *affine = (t.float() for t in (x, weight, bias))
        out, mean, rstd = torch.native_group_norm(wide, *affine, *ctx.sizes, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        return out.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, mean, rstd = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        grads = torch.ops.aten.native_group_norm_backward(
            grad.float(), x.float(), mean, rstd, weight.float(), *ctx.sizes, ctx.needs_input_grad[:3]
        )
        return *(None if g is None else g.to(like.dtype) for g, like in zip(grads, (x, weight, weight))), None, None


for _name, _layer in {
    'BN': BatchNorm2d,
    'BN1d': nn.BatchNorm1d,
    'BN2d': BatchNorm2d,
    'SyncBN': SyncBN,
    'MMSyncBN': SyncBN,  # mmcv's own, which takes empty batches, as this one does
    'GN': GroupNorm,
    'IN': nn.InstanceNorm2d,
    'CBN': CrossIterBatchNorm2d,
}.items():
    MODELS.register_module(name=_name, module=_layer)

NORM_NAMES = ['BN', 'SyncBN', 'GN', 'CBN', 'BatchRenorm', 'MABN', 'FRN', 'IN']
# What a frozen backbone keeps in eval mode: everything with running statistics.
BATCH_NORMS = (_BatchNorm, CrossIterBatchNorm2d, BatchRenorm, MovingAverageBatchNorm2d)


def _attribute_name(layer: type) -> str:
    """The name under which a norm stands beside its convolution in checkpoints, as mmcv infers it."""
    if hasattr(layer, '_abbr_'):
        return layer._abbr_
    for base, name in (
        (nn.GroupNorm, 'gn'),
        (nn.LayerNorm, 'ln'),
        (nn.modules.instancenorm._InstanceNorm, 'in'),
    ):
        if issubclass(layer, base):
            return name
    if issubclass(layer, _NormBase):
        return 'bn'
    lowered = layer.__name__.lower()
    for word, name in (('batch', 'bn'), ('group', 'gn'), ('layer', 'ln'), ('instance', 'in')):
        if word in lowered:
            return name
    return 'norm_layer'  # 'norm' is ConvModule's own


def build_norm_layer(cfg: dict, num_features: int, postfix: int | str = '') -> tuple[str, nn.Module]:
    """The norm that ``norm_cfg`` names: its attribute name ('bn', 'gn', ...) followed by `postfix`, and the layer.

    ``requires_grad=False`` in `cfg` freezes gamma and beta; see `mmdet.layers.build` for the rest.

    Raises:
        UserError: an unknown type, or an option that it does not have.

    >>> build_norm_layer(dict(type='GN', num_groups=32), 256)
    ('gn', GroupNorm(32, 256, eps=1e-05, affine=True))
    """
    layer, options = layer_class('norm_cfg', cfg, NORM_NAMES)
    requires_grad = options.pop('requires_grad', True)
    if issubclass(layer, nn.GroupNorm) and 'num_groups' not in options:
        raise UserError(f"norm_cfg={cfg!r} lacks 'num_groups', for example num_groups=32")
    if 'num_channels' in inspect.signature(layer).parameters:
        norm = build_layer('norm_cfg', cfg, layer, num_channels=num_features, **options)
    else:
        norm = build_layer('norm_cfg', cfg, layer, num_features, **options)
    norm.requires_grad_(requires_grad)
    return f'{_attribute_name(layer)}{postfix}', norm
