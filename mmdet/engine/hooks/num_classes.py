"""The classes of heads and data sets."""

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmdet.config.overrides import refuse_overrides
from mmdet.engine.data_checks import check_classes
from mmdet.registry import HOOKS


@HOOKS.register_module()
@refuse_overrides('extend/hook.md', _check_head='before_train_epoch and before_val_epoch')
class NumClassCheckHook(Hook):
    """Refuse a head that counts other classes than the data set has. The tools check it themselves, before training;
    this is for a Runner that is built by hand, and for configs of mmdetection that list it."""

    def before_train_epoch(self, runner: Runner) -> None:
        self._check(runner, runner.train_dataloader)

    def before_val_epoch(self, runner: Runner) -> None:
        self._check(runner, runner.val_dataloader)

    def _check(self, runner: Runner, dataloader) -> None:
        check_classes(getattr(runner.model, 'module', runner.model), dataloader.dataset)
