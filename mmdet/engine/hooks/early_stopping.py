"""Early stopping on a metric that exists."""

from mmengine.hooks import EarlyStoppingHook
from mmengine.runner import Runner

from mmdet.config.errors import UserError, at_most
from mmdet.engine.hooks.checkpoint import last_good
from mmdet.registry import HOOKS


@HOOKS.register_module(name='EarlyStoppingHook')
class StrictEarlyStoppingHook(EarlyStoppingHook):
    """mmengine's hook, which only warns, and never stops, where the metric it watches does not exist: an error here."""

    def after_val_epoch(self, runner: Runner, metrics: dict) -> None:
        if self.monitor not in metrics:
            raise UserError(f'EarlyStoppingHook: monitor={self.monitor!r} is none of the metrics: '
                            f'{at_most(metrics, 12)}. {last_good(runner)}')
        super().after_val_epoch(runner, metrics)
