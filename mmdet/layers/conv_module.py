"""Convolution, norm and activation as one block.

N, C, H, W    pictures (or RoIs), channels, height, width
"""

from torch import Tensor, nn

from ..registry import MODELS
from .cbn import CrossIterBatchNorm2d
from .norm import build_norm_layer

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
    """``norm(conv(x))``; Cross-Iteration Batch Normalization also gets what it needs for its closed forms."""
    return norm.after(conv, x) if isinstance(norm, CrossIterBatchNorm2d) else norm(conv(x))


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
