"""Signals: the run is saved and stopped."""

import os
import signal

import torch
import torch.distributed as dist
from mmengine.dist import barrier, is_distributed
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmdet.config.errors import Interrupted
from mmdet.engine.hooks.norm_statistics import average_norm_statistics
from mmdet.engine.runner import model_of
from mmdet.registry import HOOKS


@HOOKS.register_module()
class StopSafelyHook(Hook):
    """On SIGTERM or Ctrl-C: finish the iteration, save ``interrupted.pth``, leave with a clear line.

    Several processes finish the next one too: each tells the others after an iteration whether it has had a signal, and
    takes their answer after the next, when it has long arrived. A second signal ends the process at once.
    """

    priority = 'LOWEST'
    filename = 'interrupted.pth'

    def __init__(self):
        self.signum, self.group, self.earlier = 0, None, {}
        self.asked = None  # the question of the last iteration: its work, and a tensor for the answer

    def before_train(self, runner: Runner) -> None:
        if is_distributed():
            # Processes notice a signal in different iterations; they agree through a CPU group of their own.
            self.group = dist.new_group(backend='gloo')
        self.earlier = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}

    def _note(self, signum: int, frame) -> None:
        self.signum = signum
        self._restore()

    def _restore(self) -> None:
        for signum, handler in self.earlier.items():
            signal.signal(signum, handler)
        self.earlier = {}

    def after_train(self, runner: Runner) -> None:
        self._restore()
        self._agreed()

    def _agreed(self) -> int:
        """The signal that any process had had in the iteration before, or 0."""
        if self.asked is None:
            return 0
        work, answer = self.asked
        self.asked = None
        work.wait()
        return int(answer)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        signum = self.signum
        if self.group is not None:
            signum, own = self._agreed(), torch.tensor([signum])
            self.asked = dist.all_reduce(own, op=dist.ReduceOp.MAX, group=self.group, async_op=True), own
        if signum:
            self.signum = signum
            average_norm_statistics(model_of(runner))
            self._leave(runner, epoch=runner.epoch, iteration=runner.iter + 1)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        # Validation may take long; every process has got the signal and nothing of it needs agreement.
        if self.signum:
            self._leave(runner, epoch=runner.epoch, iteration=runner.iter)

    def _leave(self, runner: Runner, epoch: int, iteration: int) -> None:
        runner.save_checkpoint(runner.work_dir, self.filename, by_epoch=False,
                               meta=dict(epoch=epoch, iter=iteration))
        if self.group is not None:
            barrier(self.group)  # nobody leaves, and takes the others down, before the file is written
        raise Interrupted(
            f'stopped by {signal.Signals(self.signum).name} after iteration {iteration} (epoch {epoch + 1}); saved '
            f'{os.path.join(runner.work_dir, self.filename)}, --resume continues from it', self.signum)
