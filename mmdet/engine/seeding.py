"""Randomness as a function of (seed, place), so that nothing about it needs saving.

mmengine draws a sample's random numbers from its worker's generator. With workers restarted every epoch
each epoch then replays the same numbers, all ranks share numpy's and Python's, and a resumed run, or one
with another number of workers or processes, sees other images. Here the generators are seeded

- for each sample with (seed, epoch, index in the data set), in whichever worker or process it is loaded,
- for each training iteration with (seed, rank, iteration)

so that a run resumed at any iteration continues to the bit, and 2 processes x 1 image see what
1 process x 2 images sees. Can go when mmengine seeds this way.
"""

import hashlib
import os
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import get_world_size, sync_random_seed
from mmengine.registry import DATA_SAMPLERS, DATASETS
from torch.utils.data import BatchSampler, Sampler

from mmdet.checkpoints import Checkpoint
from mmdet.config.errors import say


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


def set_seed(cfg: Config, seed: int | None, deterministic: bool, resumed: Checkpoint | None) -> None:
    """Fix the run's seed before anything is built: the asked, the resumed, the config's, or a random one.

    mmengine draws it after the samplers are built when resuming, so that they shuffle otherwise.
    """
    randomness = cfg.get('randomness') or {}
    asked = randomness.get('seed') if seed is None else seed
    seed = asked
    if resumed is not None:
        seed = resumed.meta.get('seed', asked)
        if asked is not None and asked != seed:
            say(f'seed {seed} of {resumed} is kept: the requested seed {asked} would break its sequence')
    if seed is None:
        seed = sync_random_seed()
    deterministic = deterministic or randomness.get('deterministic', False)
    if deterministic:
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # cuBLAS refuses to run without
    # The same seed on all ranks gives one initial model; StepSeedHook lets them differ afterwards.
    cfg.randomness = dict(seed=seed, deterministic=deterministic)


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
            given = dict(drop_last=True) if drop_last else {}  # a class of one's own may not know it
            self.inner = DATA_SAMPLERS.build(inner, default_args=dict(sampler=sampler, batch_size=batch_size, **given))
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
