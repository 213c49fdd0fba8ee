"""Averaged weights with the running statistics that they are evaluated with."""

from mmengine.hooks import EMAHook
from mmengine.runner import IterBasedTrainLoop, Runner

from mmdet.checkpoints import Checkpoint, fit_weights
from mmdet.config.errors import UserError
from mmdet.registry import HOOKS


@HOOKS.register_module(name='EMAHook')
class StatisticsEMAHook(EMAHook):
    """mmengine's hook, which saves the running statistics of the last iteration with the averaged weights.

    SyncNormStatsHook and PreciseBNHook change them at an epoch's end, and those are evaluated. Averages begin with the
    model's weights, however these were loaded. Can go when mmengine's (0.10.7) copies the buffers before it saves, and
    loads no file that does not fit (other classes), or is of another project, into the averages.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: Checkpoint) -> None:
        """mmengine's, when a run is resumed, once the weights are seen to fit; others are fitted to the model first."""
        if runner._resume:
            fit_weights(self.src_model, checkpoint.weights, checkpoint.path)
            super().after_load_checkpoint(runner, checkpoint)

    def before_train(self, runner: Runner) -> None:
        for option, last in dict(begin_epoch=runner.max_epochs, begin_iter=runner.max_iters).items():
            if getattr(self, option) > last:
                instead = '; give begin_iter' * isinstance(runner.train_loop, IterBasedTrainLoop)
                raise UserError(f'EMAHook: {option}={getattr(self, option)} is never reached in {last} '
                                f'{"epochs" if option == "begin_epoch" else "iterations"}: nothing would be averaged'
                                f'{instead}')
        self._begin_with_the_model(runner)
        super().before_train(runner)

    def before_val(self, runner: Runner) -> None:
        self._begin_with_the_model(runner)

    def before_test(self, runner: Runner) -> None:
        self._begin_with_the_model(runner)

    def _begin_with_the_model(self, runner: Runner) -> None:
        if not runner._resume and self.ema_model.steps == 0:
            self.ema_model.module.load_state_dict(self.src_model.state_dict())

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if not self.ema_model.update_buffers:
            for averaged, own in zip(self.ema_model.module.buffers(), self.src_model.buffers()):
                averaged.copy_(own)
        super().before_save_checkpoint(runner, checkpoint)
