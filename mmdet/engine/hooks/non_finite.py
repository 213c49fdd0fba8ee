"""NaN and infinity: in losses, running statistics, weights and the optimizer's state."""

import math
from collections import deque

import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor

from mmdet.config.errors import UserError, at_most
from mmdet.engine.hooks.checkpoint import last_good
from mmdet.engine.message_hub import AsyncCopy
from mmdet.engine.runner import model_of
from mmdet.registry import HOOKS


@HOOKS.register_module()
class NonFiniteLossHook(Hook):
    """End training when the loss or a running statistic is NaN or infinite, before that is evaluated or saved.

    The host does not wait for a GPU to look: there it sees an iteration's numbers once they have arrived, as a rule
    while the next one runs. Weights and optimizer state are looked at before they are saved.

    Args:
        allowed: iterations in a row whose loss may go wrong (float16 with loss scaling skips such steps).
    """

    priority = 'VERY_HIGH'

    def __init__(self, allowed: int = 0):
        self.allowed, self.in_a_row = allowed, 0
        self.coming: deque[tuple[dict, AsyncCopy]] = deque()  # iterations that have not been looked at
        self.images: list[str] = []  # of the last iteration
        self.statistics: dict[str, Tensor] = {}  # of the layers that are trained

    def before_train_epoch(self, runner: Runner) -> None:
        self.statistics = {}

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        self._look(runner)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        losses = {k: v for k, v in (outputs or {}).items() if 'loss' in k}
        samples = data_batch.get('data_samples') or [] if isinstance(data_batch, dict) else []
        self.images = [str(sample.get('img_id', '?')) for sample in samples]
        self.statistics = self.statistics or {
            f'{layer}.{name}': value for layer, module in model_of(runner).named_modules() if module.training
            for name, value in module.named_buffers(recurse=False) if name in ('running_mean', 'running_var')}
        # The largest magnitudes, in few kernels.
        largest = torch._foreach_norm(list(self.statistics.values()), math.inf) if self.statistics else [0.0]
        if losses:
            about = dict(names=list(losses), epoch=runner.epoch + 1, iteration=runner.iter + 1, images=self.images,
                         statistics=list(self.statistics),
                         lr=next(iter(runner.optim_wrapper.get_lr().values()))[0])
            self.coming.append((about, AsyncCopy([*losses.values(), *largest])))
        self._look(runner)

    def before_val(self, runner: Runner) -> None:
        self._look(runner, wait=True)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self._look(runner, wait=True)
        tensors = {name: value for name, value in model_of(runner).state_dict().items() if isinstance(value, Tensor)}
        self._refuse(runner, tensors)
        if 'optimizer' in checkpoint and isinstance(runner.optim_wrapper, OptimWrapper):
            names = {weight: name for name, weight in model_of(runner).named_parameters()}
            states = runner.optim_wrapper.optimizer.state.items()
            self._refuse(runner, {f'{key} of {names.get(weight, "a weight")}': value for weight, state in states
                                  for key, value in state.items() if isinstance(value, Tensor)})

    def after_train(self, runner: Runner) -> None:
        self._look(runner, wait=True)

    def _look(self, runner: Runner, wait: bool = False) -> None:
        while self.coming and (wait or self.coming[0][1].arrived()):
            about, numbers = self.coming.popleft()
            values, count = numbers.tolist(), len(about['names'])
            bad = [f'{k}={v}' for k, v in zip(about['names'], values) if not math.isfinite(v)]
            self.in_a_row = self.in_a_row + 1 if bad else 0
            if self.in_a_row > self.allowed:
                self._stop(runner, about, 'the loss', f': {at_most(bad)}')
            bad = [name for name, value in zip(about['statistics'], values[count:]) if not math.isfinite(value)]
            if bad:
                self._stop(runner, about, at_most(bad, 3))

    @staticmethod
    def _stop(runner: Runner, about: dict, what: str, values: str = '') -> None:
        raise UserError(
            f'{what} is not finite at epoch {about["epoch"]}, iteration {about["iteration"]}{values} '
            f'(images {at_most(about["images"])}; learning rate {about["lr"]:.3g}). Training is stopped. '
            f'{last_good(runner)}. Lower the learning rate, lengthen the warm-up, or look at these images and their '
            'annotations')

    def _refuse(self, runner: Runner, tensors: dict[str, Tensor]) -> None:
        """Raise UserError where one of the tensors about to be saved is not finite."""
        tensors = {name: value for name, value in tensors.items() if value.is_floating_point()}
        if not tensors:
            return
        device = next(iter(tensors.values())).device
        whole = torch.stack([torch.isfinite(value).all().to(device) for value in tensors.values()])
        for name, finite in zip(tensors, whole.tolist()):  # together: a GPU is waited for once
            if not finite:
                raise UserError(f'{name} holds NaN or infinity at iteration {runner.iter} (last images '
                                f'{at_most(self.images)}): no checkpoint is written. {last_good(runner)}')


@HOOKS.register_module()
class CheckInvalidLossHook(Hook):
    """mmdetection's, for configs that list it: it adds nothing, since every run has `NonFiniteLossHook`.

    Args:
        interval: mmdetection's; each iteration is looked at.
    """

    def __init__(self, interval: int = 50):
        pass
