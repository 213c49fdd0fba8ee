"""Convolution, norm and activation as one block.

N, C, H, W    pictures (or RoIs), channels, height, width
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmdet.layers.cbn import CrossIterBatchNorm2d
from mmdet.layers.cbn.derivatives import Geometry
from mmdet.layers.norm import SyncBN, build_norm_layer
from mmdet.registry import MODELS

_ACTIVATIONS = {
    'ReLU': nn.ReLU,
    'LeakyReLU': nn.LeakyReLU,
    'ReLU6': nn.ReLU6,
    'SiLU': nn.SiLU,
    'GELU': nn.GELU,
}


def _build_activation(cfg: dict) -> nn.Module:
    options = dict(cfg)
    kind = options.pop('type', None)
    if kind not in _ACTIVATIONS:
        layer = MODELS.get(kind) if isinstance(kind, str) else None
        if layer is None:
            raise ValueError(f'act_cfg={cfg!r}: unknown type {kind!r}; known are {", ".join(_ACTIVATIONS)}')
        return layer(**options)
    if kind != 'GELU':
        options.setdefault('inplace', True)
    return _ACTIVATIONS[kind](**options)


@MODELS.register_module('ConvWS')
class ConvWS2d(nn.Conv2d):
    """Convolution with a standardised weight: mean 0 and deviation 1 of each filter (arXiv 1903.10520)."""

    weight_eps = 1e-5

    def forward(self, x: Tensor) -> Tensor:
        filters = self.weight.flatten(1)
        mean, std = filters.mean(1)[:, None, None, None], filters.std(1)[:, None, None, None]
        return self._conv_forward(x, (self.weight - mean) / (std + self.weight_eps), self.bias)


def build_conv_layer(cfg: dict | None, *args, **kwargs) -> nn.Conv2d:
    """The convolution that ``conv_cfg`` names, by default nn.Conv2d; `args` and `kwargs` are nn.Conv2d's.

    Raises:
        ValueError: any type but 'Conv', 'Conv2d' and 'ConvWS'.
    """
    options = dict(cfg or {})
    kind = options.pop('type', 'Conv2d')
    layers = {'Conv': nn.Conv2d, 'Conv2d': nn.Conv2d, 'ConvWS': ConvWS2d}
    if kind not in layers:
        raise ValueError(f'conv_cfg={dict(cfg)!r}: unknown type {kind!r}; known are {", ".join(layers)}')
    return layers[kind](*args, **kwargs, **options)


def conv_norm(conv: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    """``norm(conv(x))``, x (N, C_in, H, W).

    Cross-Iteration Batch Normalization also gets what it needs for its closed forms. A norm in eval mode after a
    convolution that learns, as in a backbone with `norm_eval`, is folded into the weight, which spares memory.
    """
    traced = not isinstance(x, Tensor)  # torch.fx has to see the modules
    geometry = _folded(conv, norm) if torch.is_grad_enabled() and not traced else None
    if geometry is not None:
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        shift = torch.addcmul(norm.bias, norm.running_mean, scale, value=-1)
        return _ScaledConv.apply(x, conv.weight, scale, shift, *geometry[1:])
    return norm.after(conv, x) if isinstance(norm, CrossIterBatchNorm2d) else norm(conv(x))


class _ScaledConv(torch.autograd.Function):
    """Convolution of x with ``weight * scale``, scale (C,), and with the bias ``shift`` (C,).

    Only x is kept for the backward pass. The norm of a convolution's output would keep that output too, to find the
    gradient of its scale, which is had from the gradient of the scaled weight instead; that weight is made anew.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, *geometry) -> Tensor:
        ctx.save_for_backward(x, weight, scale)
        ctx.geometry = geometry
        return F.conv2d(x, weight * scale[:, None, None, None], shift, *geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple:
        x, weight, scale = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        scale = scale[:, None, None, None]
        of_x, _, _, of_shift, *_ = ctx.needs_input_grad
        half = grad.dtype != weight.dtype  # under autocast, where the convolution was computed in half precision
        x_grad, scaled_grad, shift_grad = torch.ops.aten.convolution_backward(
            grad, x.to(grad.dtype), (weight * scale).to(grad.dtype), [len(weight)], stride, padding, dilation, False,
            [0, 0], groups, [of_x, True, of_shift and not half],
        )  # fmt: skip
        if of_shift and half:  # a sum over all positions, too large for float16 when the loss is scaled
            shift_grad = grad.sum((0, 2, 3), dtype=weight.dtype)
        scaled_grad = scaled_grad.to(weight.dtype)
        scale_grad = (scaled_grad * weight).sum((1, 2, 3))
        return x_grad.to(x.dtype) if of_x else None, scaled_grad * scale, scale_grad, shift_grad, *[None] * 4


_HOOKS = '_forward_pre_hooks', '_forward_hooks', '_backward_pre_hooks', '_backward_hooks'


def _folded(conv: nn.Module, norm: nn.Module) -> Geometry | None:
    """``norm(conv(x))`` as one convolution that learns; None where it is none, or a hook looks at what lies between."""
    if type(norm) not in (nn.BatchNorm2d, SyncBN, CrossIterBatchNorm2d) or norm.training:
        return None
    if any(tensor is None for tensor in (norm.weight, norm.bias, norm.running_var)):
        return None
    if type(conv) is not nn.Conv2d or conv.bias is not None or not conv.weight.requires_grad:
        return None
    if conv.weight.dtype not in (torch.float32, torch.float64):  # in half precision BatchNorm computes in float32
        return None
    if any(getattr(module, hooks) for module in (conv, norm) for hooks in _HOOKS):
        return None
    return Geometry.of(conv)


@MODELS.register_module()
class ConvModule(nn.Module):
    """``activate(norm(conv(x)))``; the convolution has a bias only where there is no norm.

    The norm stands under the name that checkpoints have for it, 'bn' or 'gn'.

    Args:
        bias: 'auto' gives the convolution a bias where there is no norm.
        conv_cfg: see `build_conv_layer`.
        norm_cfg: see `build_norm_layer`; None for no norm.
        act_cfg: dict(type=...), one of nn's activations or a registered layer; None for none.

    Raises:
        ValueError: a type or option that does not exist.

    >>> block = ConvModule(3, 8, 3, padding=1, norm_cfg=dict(type='CBN', buffer_num=3, burnin=8))
    >>> [name for name, _ in block.named_parameters()]
    ['conv.weight', 'bn.weight', 'bn.bias']
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool | str = 'auto',
        conv_cfg: dict | None = None,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = dict(type='ReLU'),
    ) -> None:
        super().__init__()
        if bias == 'auto':
            bias = norm_cfg is None
        self.conv = build_conv_layer(
            conv_cfg, in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        )
        self.norm_name = None
        if norm_cfg is not None:
            self.norm_name, norm = build_norm_layer(norm_cfg, out_channels)
            self.add_module(self.norm_name, norm)
        self.activate = None if act_cfg is None else _build_activation(act_cfg)
        self.init_weights()

    @property
    def norm(self) -> nn.Module | None:
        return getattr(self, self.norm_name) if self.norm_name else None

    def init_weights(self) -> None:
        nn.init.kaiming_normal_(self.conv.weight, mode='fan_out', nonlinearity='relu')
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H', W')."""
        norm = self.norm
        x = self.conv(x) if norm is None else conv_norm(self.conv, norm, x)
        return x if self.activate is None else self.activate(x)
