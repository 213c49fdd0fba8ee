"""What mmengine has for GPUs alone, for the CPU: mixed precision, and the memory in the log."""

import resource
import sys
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmengine.runner import LogProcessor, Runner
from torch import nn

from mmdet.registry import LOG_PROCESSORS, OPTIM_WRAPPERS


@LOG_PROCESSORS.register_module(name='LogProcessor')
class MemoryLogProcessor(LogProcessor):
    """mmengine's log line, with the peak resident memory (MB) on machines without a GPU too."""

    def get_log_after_iter(self, runner: Runner, batch_idx: int, mode: str) -> tuple[dict, str]:
        tag, line = super().get_log_after_iter(runner, batch_idx, mode)
        if 'memory' not in tag:
            unit = 1 if sys.platform == 'darwin' else 1024
            tag['memory'] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit // 2**20
            head, mark, tail = line.partition('data_time: ')
            time, _, rest = tail.partition('  ')
            line = f'{head}{mark}{time}  memory: {tag["memory"]}  {rest}' if mark else line
        return tag, line


@OPTIM_WRAPPERS.register_module()
class CpuAmpOptimWrapper(OptimWrapper):
    """Mixed precision on CPU: bfloat16 autocast, no loss scaling (mmengine's AmpOptimWrapper refuses CPU)."""

    @contextmanager
    def optim_context(self, model: nn.Module):
        with super().optim_context(model), torch.autocast('cpu', dtype=torch.bfloat16):
            yield
