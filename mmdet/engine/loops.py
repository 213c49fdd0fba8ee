"""Training loops that resume where they were stopped."""

import torch
from mmengine.dataset import InfiniteSampler
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop

from mmdet.engine.seeding import SeededBatches
from mmdet.registry import LOOPS


@LOOPS.register_module(name='EpochBasedTrainLoop')
class EpochLoop(EpochBasedTrainLoop):
    """mmengine's loop, resuming in the middle of an epoch at the batch it was stopped at.

    mmengine restarts the epoch at batch 0 with the iteration count of the middle.
    """

    def run_epoch(self) -> None:
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        batches = self.dataloader.batch_sampler
        first = self._iter - self._epoch * len(self.dataloader)
        first = first if isinstance(batches, SeededBatches) and 0 < first <= len(self.dataloader) else 0
        if first:
            batches.start_at(first)
        if first < len(self.dataloader):
            for index, data_batch in enumerate(self.dataloader, start=first):
                self.run_iter(index, data_batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1


@LOOPS.register_module(name='IterBasedTrainLoop')
class IterLoop(IterBasedTrainLoop):
    """mmengine's loop, resuming without decoding every past batch again."""

    def run(self) -> torch.nn.Module:
        done = self._iter
        batches = self.dataloader.batch_sampler
        if done and isinstance(batches, SeededBatches):
            epoch, first = (0, done) if isinstance(batches.sampler, InfiniteSampler) else divmod(done, len(batches))
            batches.sampler.set_epoch(epoch)
            batches.start_at(first)
            self.dataloader_iterator = type(self.dataloader_iterator)(self.dataloader)
            self.dataloader_iterator._epoch = epoch
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            self.run_iter(next(self.dataloader_iterator))
            self._decide_current_val_interval()
            due = self._iter % self.val_interval == 0 or self._iter == self._max_iters
            if self.runner.val_loop is not None and self._iter >= self.val_begin and due:
                self.runner.val_loop.run()
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model
