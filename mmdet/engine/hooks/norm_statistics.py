"""Running statistics of norm layers over several processes."""

import torch.distributed as dist
from mmengine.dist import get_rank, get_world_size, is_distributed
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from mmdet.engine.launch import gather_differences
from mmdet.engine.runner import model_of
from mmdet.layers import BATCH_NORMS
from mmdet.registry import HOOKS


def average_norm_statistics(model: nn.Module) -> None:
    """Average the running statistics of every BatchNorm over the processes (a collective)."""
    if not is_distributed():
        return
    for module in model.modules():
        if isinstance(module, BATCH_NORMS):
            for name in ('running_mean', 'running_var'):
                if (statistics := getattr(module, name, None)) is not None:
                    dist.all_reduce(statistics)
                    statistics /= get_world_size()


@HOOKS.register_module(name=['SyncNormStatsHook', 'SyncBuffersHook'])
class SyncNormStatsHook(Hook):
    """All processes evaluate and save the same running statistics.

    It stands in for mmengine's SyncBuffersHook, which averages every buffer: counters too. A checkpoint from the middle
    of an epoch holds every process's own statistics, so that as many processes resume from it to the bit; another
    number of processes resumes from their mean.
    """

    def __init__(self):
        self.gathered: list[dict[str, Tensor]] = []  # for the checkpoint about to be saved
        self.resumed: list[dict[str, Tensor]] = []  # of ranks 1, 2, ...: what differs from rank 0

    def gather_rank_state(self, runner: Runner) -> None:
        self.gathered = gather_differences(dict(model_of(runner).named_buffers()))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        gathered, self.gathered = self.gathered, []
        if gathered:
            checkpoint['rank_buffers'] = gathered

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if runner._resume:
            self.resumed = checkpoint.get('rank_buffers', [])

    def before_train(self, runner: Runner) -> None:
        """The weights are in place, rank 0's statistics in all processes."""
        resumed, self.resumed = self.resumed, []
        buffers = dict(model_of(runner).named_buffers())
        if len(resumed) + 1 == get_world_size():
            own = resumed[get_rank() - 1] if get_rank() else {}
        else:
            main = {name: buffers[name].cpu() for name in set().union(*resumed) if buffers[name].is_floating_point()}
            own = {name: sum((other.get(name, value) for other in resumed), value) / (len(resumed) + 1)
                   for name, value in main.items()}
        for name, value in own.items():
            buffers[name].copy_(value)

    def after_train_epoch(self, runner: Runner) -> None:
        average_norm_statistics(model_of(runner))

    def before_val_epoch(self, runner: Runner) -> None:
        average_norm_statistics(model_of(runner))
