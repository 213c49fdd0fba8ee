"""NaN and infinity end a run before they are saved, with the layer and the images."""

from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from toy_task import ToyDataset, write_config

from mmdet.config.errors import UserError
from mmdet.registry import DATASETS


@DATASETS.register_module(force=True)
class HugeToyDataset(ToyDataset):
    """One item so large that its variance overflows: the normalised output is finite all the same."""

    def __getitem__(self, index):
        item = super().__getitem__(index)
        return dict(item, inputs=item['inputs'] * (1e22 if index == 3 else 1))


class Spoil(Hook):
    """Write infinity into something in the last iteration, after the losses are known."""

    priority = 'LOWEST'

    def __init__(self, what):
        self.what = what

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 7:
            self.what(runner)[0] = float('inf')


def test_an_image_that_spoils_the_statistics_is_named(tmp_path, train):
    text = "train_dataloader['dataset']['type'] = 'HugeToyDataset'\ntrain_dataloader['sampler']['shuffle'] = False\n"
    with pytest.raises(UserError) as caught:
        train(write_config(tmp_path, text=text), 'a')
    text = str(caught.value)
    for part in ('head.norm.running_var is not finite at epoch 1, iteration 2 ', 'images 102, 103',
                 'No checkpoint had'):
        assert part in text
    assert 'loss is not' not in text and not list(Path('a').glob('*.pth'))


def momentum(runner):
    return runner.optim_wrapper.optimizer.state[runner.model.stem.weight]['momentum_buffer']


@pytest.mark.parametrize(
    'what, name',
    [(lambda runner: runner.model.stem.weight.data, 'stem.weight'), (momentum, 'momentum_buffer of stem.weight'),
     (lambda runner: runner.model.head.norm.running_var, 'head.norm.running_var')])  # fmt: skip
def test_nothing_that_is_not_finite_is_saved(tmp_path, train, what, name):
    with pytest.raises(UserError) as caught:
        train(write_config(tmp_path), 'a', hooks=[Spoil(what)])
    text = str(caught.value)
    assert text.startswith(f'{name} holds NaN or infinity at iteration 8 (last images 10') and 'epoch_1.pth' in text
    assert not Path('a/epoch_2.pth').exists()


def test_frozen_statistics_are_not_looked_at_in_each_iteration(tmp_path, train, monkeypatch):
    seen = []
    norm = torch._foreach_norm
    monkeypatch.setattr(torch, '_foreach_norm', lambda some, order: seen.append(len(some)) or norm(some, order))

    class Freeze(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            runner.model.head.norm.eval()

    train(write_config(tmp_path), 'a')
    assert set(seen) == {2}
    seen.clear()
    train(write_config(tmp_path), 'b', hooks=[Freeze()])
    assert not seen
