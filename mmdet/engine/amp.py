"""Mixed precision: float16 on GPUs, bfloat16 and channels-last maps on CPUs that have instructions for it."""

import platform
from contextlib import contextmanager

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.optim import OptimWrapper
from torch import nn

from mmdet.config.errors import UserError
from mmdet.registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class CpuAmpOptimWrapper(OptimWrapper):
    """bfloat16 autocast on the CPU, without loss scaling.

    mmengine 0.10.7's AmpOptimWrapper refuses to run without a GPU; can go when it does.
    """

    @contextmanager
    def optim_context(self, model: nn.Module):
        with super().optim_context(model), torch.autocast('cpu', dtype=torch.bfloat16):
            yield


def bfloat16_instructions() -> str:
    """Those that this processor has, '' for none."""
    known = {'AVX-512 BF16': '_is_avx512_bf16_supported', 'AMX': '_is_amx_tile_supported'}
    found = [name for name, asks in known.items() if getattr(torch.cpu, asks, bool)()]
    if not found and platform.machine() not in ('x86_64', 'AMD64'):  # oneDNN would emulate them with AVX-512
        found = ['bfloat16'] if torch.ops.mkldnn._is_mkldnn_bf16_supported() else []
    return ', '.join(found)


def half_precision(device: str) -> torch.dtype | None:
    """What ``--amp`` computes in on 'cpu' or 'cuda', said in one line; None where float32 stays."""
    if not device.startswith('cpu'):
        return torch.float16
    found = bfloat16_instructions()
    if is_main_process():
        print(f'--amp: bfloat16 and channels_last maps, by {found}' if found else
              '--amp: float32 stays, this processor has no bfloat16 instructions', flush=True)  # fmt: skip
    return torch.bfloat16 if found else None


def use_amp(cfg: Config) -> None:
    """Train in mixed precision: float16 with loss scaling on GPU, bfloat16 on CPU, see `half_precision`.

    Raises:
        UserError: the config has an optimizer wrapper of another kind.
    """
    kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if kind in ('AmpOptimWrapper', 'CpuAmpOptimWrapper'):
        return
    if kind != 'OptimWrapper':
        raise UserError(f'--amp works with optim_wrapper.type=OptimWrapper, the config has {kind}')
    if torch.cuda.is_available():
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    elif half_precision('cpu'):
        cfg.optim_wrapper.type = 'CpuAmpOptimWrapper'


def use_amp_in_tests(cfg: Config) -> None:
    """Test in float16 on GPU, bfloat16 on CPU, see `half_precision`."""
    if half_precision('cuda' if torch.cuda.is_available() else 'cpu'):
        cfg.test_cfg = {**(cfg.get('test_cfg') or {}), 'fp16': True}  # mmengine's name for both
