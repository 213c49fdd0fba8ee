"""How far each process is, for who started them."""

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmdet.engine.launch import report_progress
from mmdet.registry import HOOKS


@HOOKS.register_module()
class ProgressHook(Hook):
    """Report each step of a process: one that hangs is named, and ends the run, after `launch.TIMEOUT` seconds."""

    priority = 'LOWEST'

    def __init__(self):
        self.count = 0

    def _report(self, doing: str) -> None:
        self.count += 1
        report_progress(self.count, doing)

    def before_train(self, runner: Runner) -> None:
        self._report('loading the first training batch')

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        self._report(f'training iteration {runner.iter + 1}')

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        self._report(f'loading the batch after iteration {runner.iter + 1}')

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        self._report(f'evaluating batch {batch_idx + 1}')

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        self._report(f'loading or measuring after batch {batch_idx + 1} of the evaluation')

    before_test_iter, after_test_iter = before_val_iter, after_val_iter
