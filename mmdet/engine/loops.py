"""Training loops that resume where they were stopped, in the middle of an epoch or before an evaluation; and the loop
that tests with augmentation."""

from mmengine.dataset import InfiniteSampler
from mmengine.hooks import LoggerHook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner, TestLoop
from torch import nn

from mmdet.engine.seeding import SeededBatches
from mmdet.registry import LOOPS, MODELS


def _evaluate(loop: EpochBasedTrainLoop | IterBasedTrainLoop, done: int, last: int) -> None:
    """Run the evaluation that follows after `done` of `last` epochs or iterations, if any."""
    loop._decide_current_val_interval()
    due = done % loop.val_interval == 0 or done == last
    if loop.runner.val_loop is not None and done >= loop.val_begin and due:
        loop.runner.val_loop.run()


def _make_up_evaluation(loop: EpochBasedTrainLoop | IterBasedTrainLoop, done: int, last: int) -> None:
    """Run the evaluation that is due where the run was stopped, unless the checkpoint has its results.

    Weights alone are not enough to continue from: the best checkpoint, early stopping and ReduceOnPlateauLR need them.
    """
    if done and loop.runner.message_hub.runtime_info.get('evaluated') != done:
        _evaluate(loop, done, last)


@LOOPS.register_module(name='EpochBasedTrainLoop')
class EpochLoop(EpochBasedTrainLoop):
    """mmengine's loop, resuming in the middle of an epoch at the batch it was stopped at, and between an epoch and its
    evaluation with the evaluation.

    mmengine 0.10.7 restarts the epoch at batch 0 with the iteration count of the middle, and leaves out the
    evaluation; can go when it does neither.
    """

    def run(self) -> nn.Module:
        self.runner.call_hook('before_train')
        if self._iter == self._epoch * len(self.dataloader):
            _make_up_evaluation(self, self._epoch, self._max_epochs)
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            _evaluate(self, self._epoch, self._max_epochs)
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_epoch(self) -> None:
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        batches = self.dataloader.batch_sampler
        first = self._iter - self._epoch * len(self.dataloader)
        first = first if isinstance(batches, SeededBatches) and 0 < first <= len(self.dataloader) else 0
        if first < len(self.dataloader):  # else its last iteration was the last one before the stop
            if first:
                batches.start_at(first)
            for index, data_batch in enumerate(self.dataloader, start=first):
                self.run_iter(index, data_batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1


@LOOPS.register_module(name='IterBasedTrainLoop')
class IterLoop(IterBasedTrainLoop):
    """mmengine's loop, resuming without decoding every past batch again, and with the evaluation that is due.

    onedl-mmengine 0.10.12 skips past batches for a plain BatchSampler alone; can go when both do for any.
    """

    def run(self) -> nn.Module:
        for hook in self.runner.hooks:
            if isinstance(hook, LoggerHook):
                hook.log_metric_by_epoch = False  # it would log every evaluation as that of epoch 0
        self.runner.call_hook('before_train')
        _make_up_evaluation(self, self._iter, self._max_iters)
        self.runner.call_hook('before_train_epoch')
        if self._iter:
            self._go_to(self._iter)
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            self.run_iter(next(self.dataloader_iterator))
            _evaluate(self, self._iter, self._max_iters)
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model

    def _go_to(self, done: int) -> None:
        """Let the next batch be the one after `done`; DistSamplerSeedHook has set the sampler to its first epoch."""
        batches = self.dataloader.batch_sampler
        if not isinstance(batches, SeededBatches):
            return
        epoch, first = divmod(done, len(batches))
        if isinstance(batches.sampler, InfiniteSampler):
            epoch, first = 0, done
            batches.sampler.indices = batches.sampler._indices_of_rank()  # workers have drawn from it already
        batches.sampler.set_epoch(epoch)
        batches.start_at(first)
        self.dataloader_iterator = type(self.dataloader_iterator)(self.dataloader)
        self.dataloader_iterator._epoch = epoch


@LOOPS.register_module()
class TTALoop(TestLoop):
    """mmengine's loop of a model around the tested one, which looks at several views of each image.

    Around it only here: the checkpoint has the weights of the tested model alone.

    Args:
        tta_model: config of that model, see `mmdet.models.tta`.
    """

    def __init__(self, runner: Runner, dataloader, evaluator, fp16: bool = False, tta_model: dict | None = None):
        super().__init__(runner, dataloader, evaluator, fp16)
        self.tta_model = tta_model or dict(type='DetTTAModel')

    def run(self) -> dict:
        tested = self.runner.model
        self.runner.model = MODELS.build(dict(self.tta_model, module=tested))
        try:
            return super().run()
        finally:
            self.runner.model = tested
