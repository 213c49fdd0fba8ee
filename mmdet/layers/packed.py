"""Convolutions and linear layers of a model that only infers on a CPU: one oneDNN call for each.

The weight is kept as oneDNN wants it, in the precision that is computed in, with the norm behind it folded in. A sum
and a ReLU that follow a convolution are computed before its output leaves the cache.

N, C, H, W    images (or RoIs), channels, height, width
"""

import torch
from torch import Tensor, nn

_ONEDNN = torch.ops.mkldnn


class _Packed:
    """A layer's weight and bias in oneDNN's order, made anew when a tensor they come from has changed."""

    def __init__(self) -> None:
        self.key, self.arrays = None, None

    def __deepcopy__(self, memo: dict) -> '_Packed':
        return _Packed()

    def __reduce__(self) -> tuple:
        return _Packed, ()

    def of(self, layer: nn.Module, norm: nn.Module | None, dtype: torch.dtype, size: list[int]) -> tuple:
        own, behind = layer._parameters, {} if norm is None else {**norm._parameters, **norm._buffers}
        sources = [own['weight'], own['bias'], *behind.values()]
        key = dtype, *((t.data_ptr(), t._version) for t in sources if t is not None)
        if key != self.key:
            with torch.no_grad():
                weight, bias = own['weight'], own['bias']
                if norm is not None:
                    weight, bias = folded(weight, bias, behind, norm.eps)
                bias = None if bias is None else bias.to(dtype)
                self.key, self.arrays = key, (layer.reordered(weight.to(dtype).contiguous(), size), bias)
        return self.arrays


def folded(weight: Tensor, bias: Tensor | None, norm: dict[str, Tensor], eps: float) -> tuple[Tensor, Tensor]:
    """Weight and bias of one convolution that does what it and a norm in eval mode do."""
    scale = norm['weight'] * (norm['running_var'] + eps).rsqrt()
    mean = norm['running_mean'] if bias is None else norm['running_mean'] - bias
    return weight * scale[:, None, None, None], norm['bias'] - mean * scale


def _dtype(x: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype('cpu') if torch.is_autocast_enabled('cpu') else x.dtype


def _serves(layer: nn.Module, x: Tensor) -> bool:
    weight = layer._parameters['weight']
    return (
        not torch.is_grad_enabled() and not torch.compiler.is_compiling() and weight.dtype == torch.float32
        and weight.device.type == x.device.type == 'cpu' and not weight.is_inference()
        and _dtype(x) in (torch.float32, torch.bfloat16) and x.numel() > 0
    )  # fmt: skip


class PackedConv2d(nn.Conv2d):
    """nn.Conv2d of a packed model, with zeros as padding."""

    def serves(self, x: Tensor) -> bool:
        return x.dim() == 4 and _serves(self, x)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        return self.fused(x) if self.serves(x) else super().forward(x)

    def fused(
        self, x: Tensor, norm: nn.Module | None = None, added: Tensor | None = None, relu: bool = False,
        spare: bool = False,
    ) -> Tensor:  # fmt: skip
        """``relu(norm(self(x)) + added)``, each of the three if asked for; a channels_last map.

        Where `added` is `spare` the result may take its memory: filling fresh memory costs as much as the convolution.
        """
        dtype = _dtype(x)
        x = x.to(dtype).contiguous(memory_format=torch.channels_last)
        weight, bias = self.packed.of(self, norm, dtype, x.shape)
        layer = x, weight, bias, self.padding, self.stride, self.dilation, self.groups
        if added is None:
            return _ONEDNN._convolution_pointwise(*layer, 'relu' if relu else 'none', [], '')
        x, *layer = layer
        added = added.to(dtype).contiguous(memory_format=torch.channels_last)
        last = ('relu', [], '') if relu else (None, [], None)
        if spare:
            return _ONEDNN._convolution_pointwise_.binary(added, x, *layer, 'add', 1.0, *last)
        return _ONEDNN._convolution_pointwise.binary(x, added, *layer, 'add', 1.0, *last)

    def reordered(self, weight: Tensor, size: list[int]) -> Tensor:
        return _ONEDNN._reorder_convolution_weight(
            weight, self.padding, self.stride, self.dilation, self.groups, list(size)
        )


class PackedLinear(nn.Linear):
    """nn.Linear of a packed model."""

    def forward(self, x: Tensor) -> Tensor:
        """(R, C_in) -> (R, C_out)."""
        if x.dim() != 2 or not _serves(self, x):
            return super().forward(x)
        dtype = _dtype(x)
        return _ONEDNN._linear_pointwise(x.to(dtype), *self.packed.of(self, None, dtype, x.shape), 'none', [], '')

    def reordered(self, weight: Tensor, size: list[int]) -> Tensor:
        return _ONEDNN._reorder_linear_weight(weight, size[0])


def pack(model: nn.Module) -> nn.Module:
    """Let the plain convolutions and linear layers of a model on the CPU infer as fast as oneDNN can.

    Numbers move in the last digits. Weights that change are packed anew, and gradients are computed as before, but
    each packed weight is held twice.
    """
    if torch.backends.mkldnn.is_available() and hasattr(_ONEDNN, '_convolution_pointwise'):
        for module in model.modules():
            if type(module) is nn.Conv2d and module.padding_mode == 'zeros' and type(module.padding) is not str:
                module.__class__, module.packed = PackedConv2d, _Packed()
            elif type(module) is nn.Linear:
                module.__class__, module.packed = PackedLinear, _Packed()
    return model
