"""Early stopping that counts on when resumed."""

from mmengine.hooks import EarlyStoppingHook
from mmengine.runner import Runner

from mmdet.config.errors import UserError, at_most
from mmdet.engine.hooks.checkpoint import last_good
from mmdet.registry import HOOKS


@HOOKS.register_module(name='EarlyStoppingHook')
class StrictEarlyStoppingHook(EarlyStoppingHook):
    """mmengine's hook, whose count is part of a checkpoint, and for which a metric that does not exist is an error.

    mmengine 0.10.7 counts anew when resumed, and only warns, and never stops, without its metric; can go when it
    does neither.
    """

    def before_train(self, runner: Runner) -> None:
        counted = runner.message_hub.runtime_info.get(self._name)
        if counted:
            self.wait_count, self.best_score = counted
            enough = self.stopping_threshold is not None and self.rule_map[self.rule](
                self.best_score, self.stopping_threshold)
            runner.train_loop.stop_training = enough or self.wait_count >= self.patience

    def after_val_epoch(self, runner: Runner, metrics: dict) -> None:
        if self.monitor not in metrics:
            raise UserError(f'EarlyStoppingHook: monitor={self.monitor!r} is none of the metrics: '
                            f'{at_most(metrics, 12)}. {last_good(runner)}')
        super().after_val_epoch(runner, metrics)
        runner.message_hub.update_info(self._name, (self.wait_count, self.best_score))

    @property
    def _name(self) -> str:
        return f'early_stopping/{self.monitor}'
