"""Signals: all processes stop at one place, and the run is saved."""

import os
import signal
import time

import torch
import torch.distributed as dist
from mmengine.dist import barrier, get_rank
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner

from mmdet.config.errors import Interrupted, at_most
from mmdet.engine.hooks.checkpoint import folder_of_checkpoints
from mmdet.engine.launch import cpu_group, mute_closed_terminal, patience, stop_signals
from mmdet.engine.work_dir import INTERRUPTED
from mmdet.registry import HOOKS


@HOOKS.register_module()
class StopSafelyHook(Hook):
    """On SIGTERM, Ctrl-C or when the terminal is closed: finish the iteration, save ``interrupted.pth``, leave with a
    clear line.

    Several processes finish the next one too: each tells the others after an iteration whether it has had a signal, and
    takes their answer after the next, when it has long arrived. Where gradients are accumulated, the optimizer's step
    is finished: a checkpoint has no gradients. An evaluation is left after the batch at hand, or, once all have
    finished their batches, after its results are saved. A second signal ends the process at once.
    """

    priority = 'LOWEST'

    def __init__(self):
        self.signum, self.group, self.earlier = 0, None, {}
        self.asked = None  # the question of the last iteration: its work, and a tensor for the answer
        self.evaluations, self.store, self.rank = 0, None, 0

    def before_train(self, runner: Runner) -> None:
        # Processes notice a signal in different iterations; they agree through a CPU group.
        self.group, self.rank = cpu_group(), get_rank()
        if self.group is not None:
            store = dist.distributed_c10d._get_default_store()
            self.store = dist.PrefixStore(runner.experiment_name, store)
        self.earlier = {s: signal.signal(s, self._note) for s in stop_signals()}

    def _note(self, signum: int, frame) -> None:
        mute_closed_terminal(signum)
        if self.signum:
            if signum == signal.SIGHUP:  # the system sends it, and the shell that the terminal ran
                return
            if self.rank == 0:
                os.write(2, b'stopped at once by a second signal; --resume continues from the last checkpoint\n')
            os._exit(128 + signum)
        self.signum = signum

    def _restore(self) -> None:
        for signum, handler in self.earlier.items():
            signal.signal(signum, handler)
        self.earlier = {}

    def after_train(self, runner: Runner) -> None:
        self._restore()
        self._agreed()

    # -- training: a question in each iteration

    def _ask(self) -> None:
        own = torch.tensor([self.signum])
        self.asked = dist.all_reduce(own, op=dist.ReduceOp.MAX, group=self.group, async_op=True), own

    def _agreed(self) -> int:
        """The signal that any process had had when it asked last, or 0."""
        if self.asked is None:
            return 0
        work, answer = self.asked
        self.asked = None
        work.wait()
        return int(answer)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        signum = self.signum
        if self.group is not None:
            signum = self._agreed()
            self._ask()
        if signum and _between_steps(runner):
            self._leave(runner, signum, runner.iter + 1, f'epoch {runner.epoch + 1}')

    # -- evaluation: processes are at different batches, and one may have none

    def before_val(self, runner: Runner) -> None:
        self.evaluations += 1
        if self.earlier and not len(runner.val_dataloader):
            self._look(runner, finished=True)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if self.earlier:
            self._look(runner, finished=batch_idx + 1 == len(runner.val_dataloader))

    def _look(self, runner: Runner, finished: bool) -> None:
        signum = self.signum if self.group is None else self._verdict(finished)
        if signum:
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):
                    hook.after_val_epoch(runner)  # puts the trained weights back
            self._leave(runner, signum, runner.iter, 'in its evaluation')

    def _verdict(self, finished: bool) -> int:
        """The signal for which all processes leave this evaluation, or 0.

        Whoever writes it first decides: a process that has had a signal, or the last one that has finished its batches.
        Nobody gathers results before that.
        """
        verdict, done = f'{self.evaluations} verdict', f'{self.evaluations} finished'
        if self.signum:
            return int(self.store.compare_set(verdict, '', str(self.signum)))
        if finished:
            self.store.set(f'{done} {self.rank}', '')
            if self.store.add(done, 1) == dist.get_world_size():
                self.store.compare_set(verdict, '', '0')
        deadline = time.monotonic() + patience().total_seconds()
        while finished and not self.store.check([verdict]):
            if self.signum:
                self.store.compare_set(verdict, '', str(self.signum))
            if time.monotonic() > deadline:
                late = [str(rank) for rank in range(dist.get_world_size()) if not self.store.check([f'{done} {rank}'])]
                raise RuntimeError(f'process {at_most(late)} has not finished its part of the evaluation in time')
            time.sleep(0.02)
        return int(self.store.get(verdict)) if self.store.check([verdict]) else 0

    def after_val(self, runner: Runner) -> None:
        if not self.earlier or runner.iter >= runner.max_iters:
            return
        signum = self.signum
        if self.group is not None:
            self._agreed()
            self._ask()
            signum = self._agreed()
        if signum:
            self._leave(runner, signum, runner.iter, 'and its evaluation')

    def _leave(self, runner: Runner, signum: int, iteration: int, place: str) -> None:
        runner.call_hook('gather_rank_state')
        folder = folder_of_checkpoints(runner)
        runner.save_checkpoint(folder, INTERRUPTED, by_epoch=False, meta=dict(epoch=runner.epoch, iter=iteration))
        if self.group is not None:
            barrier(self.group)  # nobody leaves, and takes the others down, before the file is written
        self._restore()
        raise Interrupted(
            f'stopped by {signal.Signals(signum).name} after iteration {iteration} ({place}); saved '
            f'{os.path.join(folder, INTERRUPTED)}, --resume continues from it', signum)


def _between_steps(runner: Runner) -> bool:
    """Whether the optimizer has taken all gradients so far."""
    wrapper = getattr(runner, 'optim_wrapper', None)
    return getattr(wrapper, '_inner_count', 0) % getattr(wrapper, '_accumulative_counts', 1) == 0
