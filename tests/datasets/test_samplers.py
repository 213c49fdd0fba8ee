import numpy as np
import pytest
from mmengine.dataset import BaseDataset, ConcatDataset, DefaultSampler, InfiniteSampler

from mmdet.datasets import AspectRatioBatchSampler


class Sizes(BaseDataset):
    """A data set whose images cannot be opened, only asked for their size."""

    def __init__(self, upright):
        self.upright = upright
        self.asked = 0
        super().__init__()

    def load_data_list(self):
        return [{} for _ in self.upright]

    def prepare_data(self, index):
        raise AssertionError('the sampler opened an image')

    def get_data_info(self, index):
        self.asked += 1
        return dict(width=10, height=20) if self.upright[index] else dict(width=20, height=10)


@pytest.mark.parametrize('count', [1, 2, 7, 30, 101])
@pytest.mark.parametrize('batch_size', [1, 2, 4])
@pytest.mark.parametrize('drop_last', [False, True])
def test_every_image_once_and_batches_of_a_kind(count, batch_size, drop_last):
    dataset = Sizes(np.random.default_rng(count).random(count) < 0.3)
    batches = AspectRatioBatchSampler(DefaultSampler(dataset, shuffle=True, seed=1), batch_size, drop_last)
    for _ in range(2):
        drawn = list(batches)
        assert len(drawn) == len(batches)
        indices = [i for batch in drawn for i in batch]
        assert len(set(indices)) == len(indices)
        if drop_last:
            assert all(len(batch) == batch_size for batch in drawn)
        else:
            assert sorted(indices) == list(range(count))
        mixed = [b for b in drawn if len({bool(dataset.upright[i]) for i in b}) == 2]
        assert len(mixed) <= 1
    assert dataset.asked <= count


def test_the_last_images_share_a_batch_upright_ones_first():
    """As in mmdetection, so that the same seed gives the same batches."""
    batches = AspectRatioBatchSampler(DefaultSampler(Sizes([0, 1, 0, 0, 1, 1]), shuffle=False), 2)
    assert list(batches) == [[0, 2], [1, 4], [5, 3]]


def test_all_processes_make_the_same_number_of_batches(monkeypatch):
    dataset = Sizes(np.random.default_rng(0).random(37) < 0.5)
    counts, seen = [], set()
    for rank in range(3):
        sampler = DefaultSampler(dataset, shuffle=True, seed=5)
        monkeypatch.setattr(sampler, 'rank', rank)
        monkeypatch.setattr(sampler, 'world_size', 3)
        monkeypatch.setattr(sampler, 'num_samples', 13)
        monkeypatch.setattr(sampler, 'total_size', 39)
        drawn = list(AspectRatioBatchSampler(sampler, 4))
        counts.append(len(drawn))
        seen.update(i for b in drawn for i in b)
    assert counts == [4, 4, 4]
    assert seen == set(range(37))


def test_with_an_endless_sampler_and_a_joined_data_set():
    dataset = ConcatDataset([Sizes([True, False, False]), Sizes([False, True])])
    batches = iter(AspectRatioBatchSampler(InfiniteSampler(dataset, shuffle=True, seed=0), 2))
    upright = {0, 4}
    for _ in range(40):
        batch = next(batches)
        assert len(batch) == 2
        assert len({i in upright for i in batch}) == 1


@pytest.mark.parametrize('batch_size', [0, -1, 1.5])
def test_wrong_batch_size(batch_size):
    with pytest.raises(ValueError, match='batch_size'):
        AspectRatioBatchSampler(DefaultSampler(Sizes([True])), batch_size)
