"""Convolutions and linear layers of a model that only infers on a CPU: one oneDNN call for each.

The weight is kept as oneDNN wants it, in the precision that is computed in, with the norm behind it folded in. A sum
and a ReLU that follow a convolution are computed before its output leaves the cache: `conv_norm` asks for them. In
networks of other libraries, which call one module after the other, a norm finds its work done (`fold_behind`).

N, C, H, W    images (or RoIs), channels, height, width
"""

import functools
import weakref

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

    behind: tuple[nn.Module, ...] = ()  # the norm of `fold_behind`; in a tuple it is no part of this module

    def serves(self, x: Tensor) -> bool:
        return x.dim() == 4 and _serves(self, x)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        if not self.serves(x):
            return super().forward(x)
        for norm in self.behind:
            if not (norm.training or _hooked(norm) or _hooked(self)):
                out = self.fused(x, norm)
                norm.folded.output = weakref.ref(out)
                return out
        return self.fused(x)

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
        for module in model.modules():
            for conv, norm in module.calls_in_turn() if hasattr(module, 'calls_in_turn') else ():
                fold_behind(conv, norm)
    return model


class _Folded:
    """What a convolution gave with the norm behind it folded in; nothing in a copy."""

    def __init__(self) -> None:
        self.output = lambda: None

    def __reduce__(self) -> tuple:
        return _Folded, ()


def fold_behind(conv: nn.Module, norm: nn.Module) -> None:
    """Let a packed convolution infer with the BatchNorm folded in that its network calls next, on its output alone.

    A norm that does more than normalise and call what it holds, as timm's BatchNormAct2d calls its activation, stays
    as it is.
    """
    if type(conv) is PackedConv2d and not conv.behind and _normalises(norm):
        conv.behind = (norm,)
        norm.__class__, norm.folded = _after_folding(type(norm)), _Folded()


class AfterFolding:
    """Mixin of the norms of `fold_behind`: what the convolution has normalised goes to what the norm holds alone."""

    def forward(self, x: Tensor) -> Tensor:
        if x is not self.folded.output():
            return super().forward(x)
        self.folded.output = lambda: None
        for child in self.children():
            x = child(x)
        return x

    def __reduce_ex__(self, protocol: int) -> tuple:  # a class that is made here cannot be pickled by its name
        _, _, *state = super().__reduce_ex__(protocol)
        return _new, (type(self).__bases__[1],), *state


@functools.cache
def _after_folding(kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (AfterFolding, kind), dict(__module__=kind.__module__))


def _new(kind: type[nn.Module]) -> nn.Module:
    made = _after_folding(kind)
    return made.__new__(made)


@torch.no_grad()
def _normalises(norm: nn.Module) -> bool:
    own = {**norm._parameters, **norm._buffers}
    if any(own.get(name) is None for name in ('weight', 'bias', 'running_mean', 'running_var')):
        return False
    modes = [(module, module.training) for module in norm.modules()]
    x = torch.linspace(-2, 2, 4 * len(own['weight']), dtype=own['weight'].dtype, device=own['weight'].device)
    x = x.reshape(1, -1, 2, 2)
    scale, shift = folded(torch.ones_like(own['weight'])[:, None, None, None], None, own, norm.eps)
    expected = x * scale[:, :, 0] + shift[:, None, None]
    try:
        norm.eval()
        for child in norm.children():
            expected = child(expected)
        return torch.allclose(norm(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    finally:
        for module, mode in modes:
            module.training = mode


def _hooked(module: nn.Module) -> bool:
    return bool(
        module._forward_pre_hooks or module._forward_hooks or module._backward_pre_hooks or module._backward_hooks
    )
