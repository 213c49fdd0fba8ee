"""A run that is stopped or killed in an evaluation makes it up first, and has then what a whole run has."""

import os
import signal
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from test_resume import Record, SignalAt, equal
from toy_task import CONFIG, ToyDataset, ToyMetric, weights, write_config

from mmdet.checkpoints import read_checkpoint
from mmdet.config.errors import Interrupted
from mmdet.registry import DATASETS


@DATASETS.register_module(force=True)
class QuietToyDataset(ToyDataset):
    """Without noise, as images of a validation set are."""

    def __getitem__(self, index):
        item = super().__getitem__(index)
        return dict(item, inputs=torch.full((3,), float(index)) / self.length)


CONFIG += "val_dataloader['dataset']['type'] = 'QuietToyDataset'\n"

class Killed(Exception):
    """Of a process, which saves nothing."""


class InEvaluation(Hook):
    """Stop or kill the run in its n-th evaluation, at the second batch or (late) once all is measured."""

    def __init__(self, number: int, kill: bool, late: bool = False):
        self.number, self.kill, self.late = number, kill, late

    def _now(self):
        if self.kill:
            raise Killed
        os.kill(os.getpid(), signal.SIGTERM)

    def before_val(self, runner):
        self.number -= 1

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if self.number == 0 and batch_idx == 1 and not self.late:
            self._now()

    def after_val_epoch(self, runner, metrics=None):
        if self.number == 0 and self.late:
            self._now()


class Scores(Record):
    def __init__(self):
        super().__init__()
        self.scores = {}

    def after_val_epoch(self, runner, metrics=None):
        self.scores.setdefault(runner.iter, []).append(metrics['mAP'])


def of_iterations(text: str) -> str:
    for a, b in (('by_epoch=True, max_epochs=2, val_interval=1', 'by_epoch=False, max_iters=8, val_interval=4'),
                 ("dict(type='MultiStepLR', by_epoch=True", "dict(type='MultiStepLR', by_epoch=False"),
                 ("'CheckpointHook', interval=1", "'CheckpointHook', by_epoch=False, interval=4")):  # fmt: skip
        assert a in text
        text = text.replace(a, b)
    return text + 'log_processor = dict(by_epoch=False)\n'


@pytest.mark.parametrize('kill, late', [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize('number', [1, 2])
@pytest.mark.parametrize('loop', ['epochs', 'iterations'])
def test_an_evaluation_is_made_up(tmp_path, train, loop, number, kill, late):
    text = CONFIG if loop == 'epochs' else of_iterations(CONFIG)
    text += "custom_hooks = [dict(type='EMAHook', momentum=0.3)]\n"  # its weights are swapped in meanwhile
    config = write_config(tmp_path, base=text)
    whole, before, rest = Scores(), Scores(), Scores()
    expected = weights(train(config, 'whole', hooks=[whole]))
    with pytest.raises(Killed if kill else Interrupted):
        train(config, 'half', hooks=[InEvaluation(number, kill, late), before])
    resumed = train(config, 'half', resume=True, hooks=[rest])
    assert equal(weights(resumed), expected) and rest.losses == whole.losses[4 * number :]
    assert list(rest.scores)[0] == 4 * number
    assert {**before.scores, **rest.scores} == whole.scores and all(len(seen) == 1 for seen in rest.scores.values())
    files = [{path.name for path in Path(folder).glob('*.pth')} for folder in ('whole', 'half')]
    assert files[0] == files[1]
    for name in files[0]:
        ours, theirs = (read_checkpoint(f'{folder}/{name}') for folder in ('half', 'whole'))
        assert equal(ours['state_dict'], theirs['state_dict'])
    best = resumed.message_hub.get_info('best_ckpt')
    assert os.path.dirname(best) == os.path.abspath('half') and os.path.isfile(best)


def test_one_that_was_done_is_not_done_again(tmp_path, train):
    config = write_config(tmp_path)
    for work_dir, iteration in (('a', 4), ('b', 6)):
        with pytest.raises(Interrupted):
            train(config, work_dir, hooks=[SignalAt(iteration)])
        rest = Scores()
        train(config, work_dir, resume=True, hooks=[rest])
        assert list(rest.scores) == [8]
    rest = Scores()
    train(config, 'a', {'train_cfg.max_epochs': 3}, resume=True, hooks=[rest])
    assert list(rest.scores) == [12]


def test_a_signal_once_all_is_measured_keeps_the_results(tmp_path, train):
    config = write_config(tmp_path)
    with pytest.raises(Interrupted, match='after iteration 4'):
        train(config, 'a', hooks=[InEvaluation(1, kill=False, late=True)])
    rest = Scores()
    train(config, 'a', resume=True, hooks=[rest])
    assert list(rest.scores) == [8]
    train(config, 'b', hooks=[InEvaluation(2, kill=False, late=True)])  # nothing is left to do
    assert Path('b/epoch_2.pth').exists()


@pytest.fixture
def falling(monkeypatch):
    """Each epoch is worse than the one before it."""

    def compute(metric, results):
        from mmengine.logging import MessageHub

        return dict(mAP=1 / (1 + MessageHub.get_current_instance().get_info('epoch')))

    monkeypatch.setattr(ToyMetric, 'compute_metrics', compute)


def test_early_stopping_counts_on(tmp_path, train, falling):
    stop = "custom_hooks = [dict(type='EarlyStoppingHook', monitor='mAP', patience=3, min_delta=0)]\n"
    config = write_config(tmp_path, text=stop)
    assert train(config, 'whole', {'train_cfg.max_epochs': 9}).epoch == 4
    for work_dir, stopped in (('a', 2), ('b', 3)):
        train(config, work_dir, {'train_cfg.max_epochs': stopped})
        assert train(config, work_dir, {'train_cfg.max_epochs': 9}, resume=True).epoch == 4
    with pytest.raises(Interrupted):
        train(config, 'c', {'train_cfg.max_epochs': 9}, hooks=[InEvaluation(3, kill=False)])
    assert train(config, 'c', {'train_cfg.max_epochs': 9}, resume=True).epoch == 4
    assert train(config, 'c', {'train_cfg.max_epochs': 9}, resume=True).epoch == 4  # it has ended
    patient = {'train_cfg.max_epochs': 9, 'custom_hooks.0.patience': 5}
    assert train(config, 'c', patient, resume=True).epoch == 6


@pytest.mark.parametrize('kind', ["type='EMAHook', momentum=0.3, interval=2", "type='EMAHook', begin_epoch=2",
                                  "type='EMAHook', ema_type='StochasticWeightAverage'",
                                  "type='EMAHook', ema_type='MomentumAnnealingEMA', update_buffers=True"])
def test_averages_count_on(tmp_path, train, kind):
    config = write_config(tmp_path, text=f'custom_hooks = [dict({kind})]\n')
    train(config, 'whole')
    with pytest.raises(Interrupted):
        train(config, 'half', hooks=[SignalAt(2)])
    train(config, 'half', resume=True)
    ours, theirs = (read_checkpoint(f'{folder}/epoch_2.pth') for folder in ('half', 'whole'))
    assert equal(ours['ema_state_dict'], theirs['ema_state_dict']) and int(ours['ema_state_dict']['steps']) > 3


def test_averaged_weights_are_saved_with_the_statistics_that_are_evaluated(tmp_path, train):
    """Other hooks change the statistics at an epoch's end; EMAHook copies them in each iteration alone."""
    hooks = "custom_hooks = [dict(type='EMAHook', momentum=0.3), dict(type='PreciseBNHook', num_iters=2)]\n"
    runner = train(write_config(tmp_path, text=hooks), 'a')
    saved = read_checkpoint('a/epoch_2.pth')['state_dict']
    assert torch.equal(saved['head.norm.running_var'], runner.model.head.norm.running_var)


def test_the_best_of_another_folder_is_left_alone(tmp_path, train, capfd):
    config = write_config(tmp_path)
    train(config, 'a', {'train_cfg.max_epochs': 1})
    before = {path: path.read_bytes() for path in Path('a').glob('*.pth')}
    runner = train(config, 'b', resume='a/epoch_1.pth')
    assert {path: path.read_bytes() for path in Path('a').glob('*.pth')} == before
    assert runner.message_hub.get_info('best_ckpt') == os.path.abspath('b/best_mAP_epoch_2.pth')
    Path('a').rename('moved')  # the whole run: its best goes with it
    runner = train(config, 'moved', {'train_cfg.max_epochs': 1}, resume=True)
    assert runner.message_hub.get_info('best_ckpt') == os.path.abspath('moved/best_mAP_epoch_1.pth')
    assert 'last   moved/epoch_1.pth' in ''.join(capfd.readouterr())  # in the last lines of a run
