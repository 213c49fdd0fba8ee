"""Losses that are NaN or infinite."""

import math
from collections import deque

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmdet.config.errors import UserError, at_most
from mmdet.engine.hooks.checkpoint import last_good
from mmdet.engine.message_hub import AsyncCopy
from mmdet.registry import HOOKS


@HOOKS.register_module()
class NonFiniteLossHook(Hook):
    """End training when the loss is NaN or infinite, before the weights it made are evaluated or saved.

    The host does not wait for a GPU to look: there it sees an iteration's losses once they have arrived, as a rule
    while the next one runs.

    Args:
        allowed: iterations in a row that may go wrong (float16 with loss scaling skips such steps).
    """

    priority = 'VERY_HIGH'

    def __init__(self, allowed: int = 0):
        self.allowed, self.in_a_row = allowed, 0
        self.coming: deque[tuple[dict, AsyncCopy]] = deque()  # iterations whose losses have not been looked at

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        self._look(runner)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        losses = {k: v for k, v in (outputs or {}).items() if 'loss' in k}
        samples = data_batch.get('data_samples') or [] if isinstance(data_batch, dict) else []
        if losses:
            about = dict(names=list(losses), epoch=runner.epoch + 1, iteration=runner.iter + 1,
                         images=[str(sample.get('img_id', '?')) for sample in samples],
                         lr=next(iter(runner.optim_wrapper.get_lr().values()))[0])
            self.coming.append((about, AsyncCopy(list(losses.values()))))
        self._look(runner)

    def before_val(self, runner: Runner) -> None:
        self._look(runner, wait=True)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self._look(runner, wait=True)

    def after_train(self, runner: Runner) -> None:
        self._look(runner, wait=True)

    def _look(self, runner: Runner, wait: bool = False) -> None:
        while self.coming and (wait or self.coming[0][1].arrived()):
            about, losses = self.coming.popleft()
            bad = [f'{k}={v}' for k, v in zip(about['names'], losses.tolist()) if not math.isfinite(v)]
            self.in_a_row = self.in_a_row + 1 if bad else 0
            if self.in_a_row > self.allowed:
                raise UserError(
                    f'the loss is not finite at epoch {about["epoch"]}, iteration {about["iteration"]}: {at_most(bad)} '
                    f'(images {at_most(about["images"])}; learning rate {about["lr"]:.3g}). Training is stopped. '
                    f'{last_good(runner)}. Lower the learning rate, lengthen the warm-up, or look at the annotations '
                    'of these images')
