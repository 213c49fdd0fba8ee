"""Norm layers of frozen parts."""

from collections.abc import Sequence

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmdet.engine.freezing import frozen_modules
from mmdet.engine.runner import model_of
from mmdet.registry import HOOKS


@HOOKS.register_module()
class FreezeHook(Hook):
    """Keep the frozen parts of a model in eval mode while the rest is trained.

    Their norm layers, CBN too, normalise by their running statistics and change nothing, and dropout is off.
    `build_runner` adds this hook where a config has ``frozen_parts = [...]``; `mmdet.engine.freezing` stops the
    gradients.
    """

    priority = 'VERY_HIGH'  # before hooks that look at which layers train

    def __init__(self, names: str | Sequence[str]):
        self.names = names

    def before_train(self, runner: Runner) -> None:
        self.modules = frozen_modules(model_of(runner), self.names)
        self.before_train_iter(runner, 0)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        for module in self.modules:  # the loop has put all in training mode
            module.training = False
