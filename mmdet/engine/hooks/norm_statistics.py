"""Running statistics of norm layers over several processes."""

import torch.distributed as dist
from mmengine.dist import get_world_size, is_distributed
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from mmdet.engine.runner import model_of
from mmdet.layers import BATCH_NORMS
from mmdet.registry import HOOKS


def average_norm_statistics(model: nn.Module) -> None:
    """Average the running statistics of every BatchNorm over the processes (a collective)."""
    if not is_distributed():
        return
    for module in model.modules():
        if isinstance(module, BATCH_NORMS) and module.track_running_stats:
            for statistics in (module.running_mean, module.running_var):
                dist.all_reduce(statistics)
                statistics /= get_world_size()


@HOOKS.register_module(name=['SyncNormStatsHook', 'SyncBuffersHook'])
class SyncNormStatsHook(Hook):
    """All processes evaluate and save the same running statistics.

    It stands in for mmengine's SyncBuffersHook, which averages every buffer: CBN's history, counters.
    """

    def after_train_epoch(self, runner: Runner) -> None:
        average_norm_statistics(model_of(runner))

    def before_val_epoch(self, runner: Runner) -> None:
        average_norm_statistics(model_of(runner))
