"""Convolution, norm and activation as one block.

N, C, H, W    images (or RoIs), channels, height, width
"""

import inspect
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.utils import _pair

from mmdet.config.errors import UserError
from mmdet.layers.batch_stats import channel_sums
from mmdet.layers.build import build_layer, layer_class
from mmdet.layers.cbn import CrossIterBatchNorm2d
from mmdet.layers.norm import BatchNorm2d, SyncBN, build_norm_layer
from mmdet.layers.packed import PackedConv2d
from mmdet.registry import MODELS

CONV_NAMES = ['Conv2d', 'Conv', 'ConvWS', 'CenConv2d', 'DCN', 'DCNv2']
for _name in ('Conv2d', 'Conv'):
    MODELS.register_module(name=_name, module=nn.Conv2d)

ACTIVATION_NAMES = ['ReLU', 'LeakyReLU', 'PReLU', 'RReLU', 'ReLU6', 'ELU', 'SiLU', 'GELU', 'Sigmoid', 'Tanh']
for _name in ACTIVATION_NAMES:
    MODELS.register_module(name=_name, module=getattr(nn, _name))

kaiming_normal = partial(nn.init.kaiming_normal_, mode='fan_out', nonlinearity='relu')


@MODELS.register_module('ConvWS')
class ConvWS2d(nn.Conv2d):
    """Convolution with a standardised weight: mean 0 and deviation 1 of each filter (arXiv 1903.10520)."""

    weight_eps = 1e-5

    def forward(self, x: Tensor) -> Tensor:
        filters = self.weight.flatten(1)
        mean, std = filters.mean(1)[:, None, None, None], filters.std(1)[:, None, None, None]
        return self._conv_forward(x, (self.weight - mean) / (std + self.weight_eps), self.bias)


@MODELS.register_module()
class CenConv2d(nn.Conv2d):
    """Convolution with a centred weight: each filter less its mean, as MABN wants it (arXiv 2001.06838)."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


def build_conv_layer(cfg: dict | None, *args, **kwargs) -> nn.Module:
    """The convolution that ``conv_cfg`` names, by default nn.Conv2d; `args` and `kwargs` are nn.Conv2d's.

    It may be any registered class that takes them (see `mmdet.layers.build`). One that derives from nn.Conv2d is
    initialised by the model it stands in (not what it holds itself); any other initialises itself. Before CBN it must
    have a `weight` (C_out, ...).

    Raises:
        UserError: an unknown type, or an option that it does not have.
    """
    if cfg is None:
        return nn.Conv2d(*args, **kwargs)
    layer, options = layer_class('conv_cfg', cfg, CONV_NAMES)
    return build_layer('conv_cfg', cfg, layer, *args, **kwargs, **options)


def build_activation_layer(cfg: dict) -> nn.Module:
    """The activation that ``act_cfg`` names, in place where its class can (see `mmdet.layers.build`).

    Raises:
        UserError: an unknown type, or an option that it does not have.
    """
    layer, options = layer_class('act_cfg', cfg, ACTIVATION_NAMES)
    if 'inplace' in inspect.signature(layer).parameters:
        options.setdefault('inplace', True)
    return build_layer('act_cfg', cfg, layer, **options)


def init_conv(conv: nn.Module, init: Callable[[Tensor], object] = kaiming_normal) -> None:
    """Fill the weight by `init` and the bias with 0; what does not derive from torch's classes initialised itself."""
    if isinstance(conv, (nn.Conv2d, nn.ConvTranspose2d)):
        init(conv.weight)
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)


def conv_norm(
    conv: nn.Module,
    norm: nn.Module | None,
    x: Tensor,
    added: Tensor | None = None,
    relu: bool = False,
    spare: bool = False,
) -> Tensor:
    """``norm(conv(x))``, x (N, C_in, H, W); then, if asked for, the sum with `added`, and ReLU.

    `spare` says that nothing else holds `added`: the result may take its memory.

    Cross-Iteration Batch Normalization also gets the convolution: a plain one for its closed forms, any other for
    derivatives through autograd. A norm in eval mode is folded into the weight of a plain convolution that learns, as
    in a backbone with `norm_eval`, which spares memory, and of a packed one, which spares time (`mmdet.layers.packed`).

    Raises:
        UserError: CBN trains behind a convolution without a tensor `weight`.
    """
    learns = torch.is_grad_enabled()
    if not learns and type(conv) is PackedConv2d and isinstance(x, Tensor) and conv.serves(x) and _folds(conv, norm):
        return conv.fused(x, norm, added, relu, spare)
    if norm is None:
        out = conv(x)
    elif learns and isinstance(x, Tensor) and _folds(conv, norm):  # torch.fx has to see the modules
        own, running = norm._parameters, norm._buffers
        scale = own['weight'] * (running['running_var'] + norm.eps).rsqrt()
        shift = torch.addcmul(own['bias'], running['running_mean'], scale, value=-1)
        weight = conv._parameters['weight']
        out = _ScaledConv.apply(x, weight, scale, shift, conv.stride, conv.padding, conv.dilation, conv.groups)
    elif not isinstance(norm, CrossIterBatchNorm2d):
        out = norm(conv(x))
    elif isinstance(conv, nn.Conv2d):
        out = norm.after(conv, x)
    else:
        weight = getattr(conv, 'weight', None)
        if weight is None and norm.training and norm.buffer_num:
            raise UserError(
                f'CBN behind {type(conv).__name__}: it has no tensor `weight` (channels first), whose changes CBN '
                'compensates for; give it one, or use another norm'
            )
        out = norm(conv(x), weight)
    if added is not None:
        out = out.add_(added)
    return out.relu_() if relu else out


def conv2d_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: tuple, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x (N, C_in, H, W), weight and bias of ``F.conv2d(x, weight, bias, *geometry)``, where `wanted`.

    `geometry` is (stride, padding, dilation, groups), `grad` (N, C_out, H', W') that of the result; one dtype for all.
    """
    *spatial, groups = geometry
    return torch.ops.aten.convolution_backward(
        grad, x, weight, [len(weight)], *map(_pair, spatial), False, [0, 0], groups, wanted
    )


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
        scale = scale[:, None, None, None]
        of_x, _, _, of_shift, *_ = ctx.needs_input_grad
        half = grad.dtype != weight.dtype  # under autocast, where the convolution was computed in half precision
        scaled = (weight * scale).to(grad.dtype)
        wanted = of_x, True, of_shift and not half
        x_grad, scaled_grad, shift_grad = conv2d_gradients(grad, x.to(grad.dtype), scaled, ctx.geometry, wanted)
        if of_shift and half:  # a sum over all positions, too large for float16 when the loss is scaled
            shift_grad = channel_sums(grad, weight.dtype)
        scaled_grad = scaled_grad.to(weight.dtype)
        scale_grad = (scaled_grad * weight).sum((1, 2, 3))
        return x_grad.to(x.dtype) if of_x else None, scaled_grad * scale, scale_grad, shift_grad, *[None] * 4


FOLDED_NORMS = BatchNorm2d, nn.BatchNorm2d, SyncBN, CrossIterBatchNorm2d


def _folds(conv: nn.Module, norm: nn.Module | None) -> bool:
    """Whether ``norm(conv(x))`` is one plain convolution, and no hook looks at what lies between.

    With gradients it has to be one that learns and has no bias. Asked in every forward, so that it holds whatever has
    changed; it enters no other Python frame.
    """
    if type(conv) not in (nn.Conv2d, PackedConv2d) or (
        conv._forward_pre_hooks or conv._forward_hooks or conv._backward_pre_hooks or conv._backward_hooks
    ):  # fmt: skip
        return False
    if norm is None:
        return True
    if norm.training or type(norm) not in FOLDED_NORMS or (
        norm._forward_pre_hooks or norm._forward_hooks or norm._backward_pre_hooks or norm._backward_hooks
    ):  # fmt: skip
        return False
    own, weight = norm._parameters, conv._parameters.get('weight')
    if own.get('weight') is None or own.get('bias') is None or norm._buffers.get('running_var') is None:
        return False
    return not torch.is_grad_enabled() or (
        weight is not None and weight.requires_grad and conv._parameters.get('bias', conv) is None
        and weight.dtype in (torch.float32, torch.float64)  # in half precision BatchNorm computes in float32
        and conv.padding_mode == 'zeros' and type(conv.padding) is not str
    )  # fmt: skip


@MODELS.register_module()
class ConvModule(nn.Module):
    """``activate(norm(conv(x)))``; the convolution has a bias only where there is no norm.

    The norm stands under the name that checkpoints have for it, 'bn' or 'gn'.

    Args:
        bias: 'auto' gives the convolution a bias where there is no norm.
        conv_cfg, norm_cfg, act_cfg: dict(type=...) of a registered layer, see `mmdet.layers.build`. By default
            nn.Conv2d, no norm and ReLU; ``act_cfg=None`` is no activation. A norm with an `activation` of its own,
            a class of the number of channels, has it in the place of ReLU.

    Raises:
        UserError: a type or option that does not exist.

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
        own_activation = getattr(self.norm, 'activation', None)
        if act_cfg is None:
            self.activate = None
        elif own_activation is not None and act_cfg['type'] in ('ReLU', nn.ReLU):
            self.activate = own_activation(out_channels)
        else:
            self.activate = build_activation_layer(act_cfg)
        init_conv(self.conv)

    @property
    def norm(self) -> nn.Module | None:
        return getattr(self, self.norm_name) if self.norm_name else None

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H', W'), to which `added` is summed: it may be overwritten."""
        norm, activate = self.norm, self.activate
        if activate is None:
            return self.conv(x) if norm is added is None else conv_norm(self.conv, norm, x, added, spare=True)
        if type(self.conv) is PackedConv2d and type(activate) is nn.ReLU and not (
            activate._forward_hooks or activate._forward_pre_hooks
        ):  # fmt: skip
            x = conv_norm(self.conv, norm, x, relu=True)
        else:
            x = activate(self.conv(x) if norm is None else conv_norm(self.conv, norm, x))
        return x if added is None else x + added


def conv_stack(count: int, in_channels: int, out_channels: int, kernel_size: int = 3, **options) -> nn.ModuleList:
    """`count` `ConvModule`s in a row, (N, C, H, W) -> (N, C', H, W) by an odd kernel; `options` are theirs."""
    padding = (kernel_size - 1) // 2
    channels = [in_channels, *[out_channels] * count]
    return nn.ModuleList(
        ConvModule(channels[i], out_channels, kernel_size, padding=padding, **options) for i in range(count)
    )
