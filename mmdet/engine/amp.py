"""Mixed precision: float16 on GPUs, bfloat16 and channels-last maps on CPUs that have instructions for it."""

import platform
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from mmdet.config.errors import UserError
from mmdet.layers.conv import conv2d_gradients
from mmdet.registry import OPTIM_WRAPPERS

_AMP = ('AmpOptimWrapper', 'mmengine.AmpOptimWrapper', AmpOptimWrapper)  # as a config may say it


@OPTIM_WRAPPERS.register_module()
class CpuAmpOptimWrapper(OptimWrapper):
    """bfloat16 autocast on the CPU, without loss scaling.

    mmengine 0.10.7's AmpOptimWrapper refuses to run without a GPU; can go when it does.
    """

    groups: bool | None = None  # whether the model has convolutions in groups; None: not yet asked

    @contextmanager
    def optim_context(self, model: nn.Module):
        if self.groups is None:
            self.groups = any(getattr(module, 'groups', 1) != 1 for module in model.modules())
        thin = _ThinGroups() if self.groups else nullcontext()  # each call of torch costs some microseconds there
        with super().optim_context(model), torch.autocast('cpu', dtype=torch.bfloat16), thin:
            yield


class _ThinGroups(TorchFunctionMode):
    """Convolutions whose groups are thin, such as depthwise ones, with gradients computed in float32.

    oneDNN's bfloat16 gradients of these take 3 to 15 times as long (torch 2.14: docs/benchmarks.md). Can go when they
    do not.
    """

    channels = 16  # of a group; from here on bfloat16 is as fast

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.conv2d and not kwargs and len(args) == 7:  # as nn.Conv2d calls it
            x, weight, *_, padding, _, groups = args
            if groups > 1 and weight.shape[1] < self.channels and type(padding) is not str and x.dim() == 4:
                return _ConvOfThinGroups.apply(*args)
        return func(*args, **(kwargs or {}))


class _ConvOfThinGroups(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, *geometry) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        dtype = torch.get_autocast_dtype('cpu')
        return F.conv2d(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype), *geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple:
        x, weight = ctx.saved_tensors
        gradients = conv2d_gradients(
            grad.float(), x.float(), weight.float(), ctx.geometry, ctx.needs_input_grad[:3]
        )
        gradients = [g if g is None else g.to(like.dtype) for g, like in zip(gradients, (x, weight, weight))]
        return *gradients, *[None] * 4


def bfloat16_instructions() -> str:
    """Those that this processor has, '' for none."""
    known = {'AVX-512 BF16': '_is_avx512_bf16_supported', 'AMX': '_is_amx_tile_supported'}
    found = [name for name, asks in known.items() if getattr(torch.cpu, asks, bool)()]
    if not found and platform.machine() not in ('x86_64', 'AMD64'):  # oneDNN would emulate them with AVX-512
        found = ['bfloat16'] if torch.ops.mkldnn._is_mkldnn_bf16_supported() else []
    return ', '.join(found)


def half_precision(device: str) -> torch.dtype | None:
    """What mixed precision computes in on 'cpu' or 'cuda', said in one line; None where float32 stays."""
    if not device.startswith('cpu'):
        return torch.float16
    found = bfloat16_instructions()
    if is_main_process():
        print(f'mixed precision: bfloat16 and channels_last maps, by {found}' if found else
              'mixed precision: float32 stays, this processor has no bfloat16 instructions', flush=True)  # fmt: skip
    return torch.bfloat16 if found else None


def use_amp(cfg: Config) -> None:
    """Train in mixed precision: float16 with loss scaling on GPU; see `buildable` for CPUs.

    Raises:
        UserError: the config has an optimizer wrapper of another kind.
    """
    kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if kind in (*_AMP, 'CpuAmpOptimWrapper'):
        return
    if kind != 'OptimWrapper':
        raise UserError(f'--amp works with optim_wrapper.type=OptimWrapper, the config has {kind}')
    cfg.optim_wrapper.update(type='AmpOptimWrapper', loss_scale=cfg.optim_wrapper.get('loss_scale', 'dynamic'))


def buildable(optim_wrapper: dict) -> dict:
    """An `optim_wrapper` for this machine: without a GPU AmpOptimWrapper is bfloat16, see `half_precision`."""
    if optim_wrapper.get('type') not in _AMP or torch.cuda.is_available():
        return optim_wrapper
    kept = {key: value for key, value in optim_wrapper.items() if key not in ('loss_scale', 'dtype', 'use_fsdp')}
    return dict(kept, type='CpuAmpOptimWrapper' if half_precision('cpu') else 'OptimWrapper')


def use_amp_in_tests(cfg: Config) -> None:
    """Test in float16 on GPU, bfloat16 on CPU, see `half_precision`."""
    if half_precision('cuda' if torch.cuda.is_available() else 'cpu'):
        cfg.test_cfg = {**(cfg.get('test_cfg') or {}), 'fp16': True}  # mmengine's name for both
