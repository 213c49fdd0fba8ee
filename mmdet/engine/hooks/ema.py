"""Averaged weights with the running statistics that they are evaluated with."""

from mmengine.hooks import EMAHook
from mmengine.runner import Runner

from mmdet.registry import HOOKS


@HOOKS.register_module(name='EMAHook')
class StatisticsEMAHook(EMAHook):
    """mmengine's hook, which saves the running statistics of the last iteration with the averaged weights.

    SyncNormStatsHook and PreciseBNHook change them at an epoch's end, and those are evaluated. Can go when
    mmengine's (0.10.7) copies the buffers before it saves.
    """

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if not self.ema_model.update_buffers:
            for averaged, own in zip(self.ema_model.module.buffers(), self.src_model.buffers()):
                averaged.copy_(own)
        super().before_save_checkpoint(runner, checkpoint)
