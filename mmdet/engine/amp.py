"""Mixed precision: float16 on GPUs, bfloat16 on CPUs."""

from contextlib import contextmanager

import torch
from mmengine.config import Config
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


def use_amp(cfg: Config) -> None:
    """Switch the optimizer wrapper to mixed precision: float16 with loss scaling on GPU, bfloat16 on CPU."""
    kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if kind in ('AmpOptimWrapper', 'CpuAmpOptimWrapper'):
        return
    if kind != 'OptimWrapper':
        raise UserError(f'--amp works with optim_wrapper.type=OptimWrapper, the config has {kind}')
    if torch.cuda.is_available():
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    else:
        cfg.optim_wrapper.type = 'CpuAmpOptimWrapper'
