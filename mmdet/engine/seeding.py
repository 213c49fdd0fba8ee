"""Randomness as a function of (seed, place), so that nothing about it needs saving.

mmengine draws a sample's random numbers from its worker's generator. With workers restarted every epoch
each epoch then replays the same numbers, all ranks share numpy's and Python's, and a resumed run, or one
with another number of workers or processes, sees other pictures. Here the generators are seeded

- for each sample with (seed, epoch, index in the data set), in whichever worker or process it is loaded,
- for each training iteration with (seed, rank, iteration)

so that a run resumed at any iteration continues to the bit, and 2 processes x 1 image see what
1 process x 2 images sees. Can go when mmengine seeds this way.
"""

import hashlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_world_size
from mmengine.registry import DATA_SAMPLERS, DATASETS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch.utils.data import BatchSampler, Sampler

from mmdet.registry import LOOPS


def derived_seed(*parts: int) -> int:
    """A 63-bit seed for a place given by numbers; seeds of neighbouring places have nothing in common.

    >>> derived_seed(0, 1, 2) == derived_seed(0, 1, 2), derived_seed(0, 1, 2) == derived_seed(0, 2, 1)
    (True, False)
    """
    digest = hashlib.blake2b(','.join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, 'little') >> 1


def seed_generators(seed: int, cuda: bool = True) -> None:
    """Seed Python's, numpy's and torch's global generators."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    if cuda:
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


class SeededDataset:
    """A data set whose items are loaded under generators seeded by the key that comes with the index."""

    def __init__(self, dataset: dict | Any):
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, keyed: tuple[int, int]) -> Any:
        index, seed = keyed
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        seed_generators(seed, cuda=False)
        try:
            return self.dataset[index]
        finally:
            # Without workers this is the model's process: its numbers must not depend on the data's.
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_rng_state(states[2])

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__') or name == 'dataset':  # not yet unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)


class SeededBatches:
    """Batches of (index, seed) pairs from any batch sampler; can begin in the middle of an epoch.

    Args:
        sampler: the epoch's indices of this process; its `epoch` (if any) is part of the seed.
        inner: config of the batch sampler to wrap; None batches consecutive indices.
    """

    def __init__(self, sampler: Sampler, batch_size: int, seed: int, inner: dict | None = None,
                 drop_last: bool = False):
        self.sampler, self.batch_size, self.seed = sampler, batch_size, seed
        if inner is None:
            self.inner = BatchSampler(sampler, batch_size, drop_last)
        else:
            self.inner = DATA_SAMPLERS.build(inner, default_args=dict(sampler=sampler, batch_size=batch_size))
        self._start = 0

    def __len__(self) -> int:
        return len(self.inner)

    def start_at(self, batch: int) -> None:
        """Let the next iteration (only) leave out the first batches without loading them."""
        self._start = batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        start, self._start = self._start, 0
        epoch, seen, ranks = getattr(self.sampler, 'epoch', 0), 0, get_world_size()
        size = len(getattr(self.sampler, 'dataset', ())) or float('inf')
        for number, batch in enumerate(self.inner):
            if number >= start:
                # An endless sampler passes over the data again and again: each pass is another epoch.
                passes = (epoch + int((seen + i) * ranks // size) for i in range(len(batch)))
                yield [(index, derived_seed(self.seed, p, index)) for index, p in zip(batch, passes)]
            seen += len(batch)


def seeded_dataloader(cfg: dict, seed: int) -> dict:
    """A training dataloader's config with sample-wise seeding put around its data set and batches."""
    cfg = dict(cfg)
    cfg['dataset'] = dict(type=SeededDataset, dataset=cfg['dataset'])
    cfg['sampler'] = {'seed': seed, **cfg['sampler']}
    cfg['batch_sampler'] = dict(type=SeededBatches, seed=seed, inner=cfg.get('batch_sampler'),
                                drop_last=cfg.pop('drop_last', False))
    return cfg


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
