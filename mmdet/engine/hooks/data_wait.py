"""Says once that a training waits for its data, and what helps."""

import os

from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmdet.registry import HOOKS


@HOOKS.register_module()
class DataWaitHook(Hook):
    """Warn, once in a run, when an iteration waits for data most of its time.

    Args:
        share: of an iteration's time; a window above it is reported.
        window: iterations that are looked at together. The first one of a run, in which workers start, does not count.
    """

    priority = 'LOW'  # after the timer

    def __init__(self, share: float = 0.4, window: int = 50):
        self.share, self.window = share, window

    def before_train(self, runner: Runner) -> None:
        self.first, self.said = True, False
        self._begin()

    def _begin(self) -> None:
        self.iterations, self.time, self.waited = 0, 0.0, 0.0

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if self.said:
            return
        if self.first:
            self.first = False
            return
        hub = runner.message_hub
        try:
            time, waited = hub.get_scalar('train/time').current(), hub.get_scalar('train/data_time').current()
        except KeyError:  # the config has no timer
            return
        self.iterations, self.time, self.waited = self.iterations + 1, self.time + time, self.waited + waited
        if self.iterations < self.window:
            return
        if self.waited > self.share * self.time:
            self.said = True
            runner.logger.warning(
                f'The data is the bottleneck: {self.waited / self.window:.3f} of {self.time / self.window:.3f} s of an '
                f'iteration ({self.waited / self.time:.0%}, mean of {self.window}) wait for it. What helps: '
                + '; '.join(_remedies(runner.train_dataloader)))
        self._begin()


def _remedies(loader) -> list[str]:
    """What can be done, the most likely first."""
    workers, cores = loader.num_workers, (os.cpu_count() or 1) // get_world_size()
    more = max(2, min(cores, 2 * workers or 4))
    remedies = []
    if more > workers:
        remedies.append(f'train_dataloader.num_workers={more} (it is {workers}; {os.cpu_count()} cores here)')
    if not loader.persistent_workers:
        remedies.append('train_dataloader.persistent_workers=True, or each epoch starts the workers anew')
    remedies += ['a smaller scale in Resize, and image files of about that size (scale them down once)',
                 'files on a local disk that fit into memory, where the system caches them']
    return remedies
