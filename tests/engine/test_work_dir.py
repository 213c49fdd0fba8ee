"""The folder of a run: what is found there is resumed or refused, and never written over."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from test_resume import Record, SignalAt, equal
from toy_task import ToyDetector, ToyMetric, weights, write_config

from mmdet.config.errors import Interrupted, UserError
from mmdet.engine.hooks.checkpoint import SafeCheckpointHook


def contents(folder: str = '.') -> dict[str, bytes]:
    """Every checkpoint below a folder, by name and content."""
    return {path.name: path.read_bytes() for path in Path(folder).rglob('*.pth')}


def test_checkpoints_in_another_folder_are_found(tmp_path, train, capfd):
    config = write_config(tmp_path)
    elsewhere = {'default_hooks.checkpoint.out_dir': 'elsewhere'}
    whole, rest = Record(), Record()
    expected = weights(train(config, 'whole', hooks=[whole]))
    with pytest.raises(Interrupted, match='saved elsewhere/run/interrupted.pth'):
        train(config, 'runs/run', elsewhere, hooks=[SignalAt(5)])
    resumed = train(config, 'runs/run', elsewhere, resume=True, hooks=[rest])
    assert equal(weights(resumed), expected) and rest.losses == whole.losses[6:]
    assert set(contents('elsewhere/run')) == set(contents('whole')) and not contents('runs')
    before = contents('elsewhere')
    train(config, 'runs/run', elsewhere, seed=1)
    assert before.items() <= {path.name: path.read_bytes() for path in Path('elsewhere/run').glob('2*/*.pth')}.items()
    with pytest.raises(UserError, match='out_dir=s3://a/b: checkpoints are written to local folders alone'):
        train(config, 'other', {'default_hooks.checkpoint.out_dir': 's3://a/b'})


@pytest.mark.parametrize('kind', ['weights', 'of mmengine\'s own Runner', 'damaged'])
def test_checkpoints_that_cannot_be_resumed_are_left_alone(tmp_path, train, kind):
    """mmengine's Runner pickles its log; the optimizer's state goes by the order of weights, which another project's
    model need not share."""
    Path('a').mkdir()
    weights = ToyDetector().state_dict()
    held = dict(state_dict=weights)
    if kind.startswith('of'):
        scalars = {'train/loss': HistoryBuffer([1.0], [1])}
        info = dict(best_score=np.float64(0.5), best_ckpt='a/best_mAP_epoch_1.pth')
        optimizer = torch.optim.SGD(ToyDetector().parameters(), 0.1).state_dict()
        held |= dict(meta=dict(epoch=1, iter=4), optimizer=optimizer, param_schedulers=[],
                     message_hub=dict(log_scalars=scalars, runtime_info=info, resumed_keys={}))  # fmt: skip
    torch.save(held, 'a/epoch_1.pth')
    torch.save(dict(state_dict=weights), 'a/best_mAP_epoch_1.pth')
    if kind == 'damaged':
        Path('a/epoch_1.pth').write_bytes(Path('a/epoch_1.pth').read_bytes()[:99])
    before = contents()
    for _ in range(2):
        with pytest.raises(UserError, match='--resume: .* can be resumed'):
            train(write_config(tmp_path), 'a', resume=True)
    assert contents() == before


@pytest.mark.parametrize('target', ['epoch_1', 'epoch_2', 'epoch_3'])
def test_going_back_keeps_what_was_written_since(tmp_path, train, target, capfd):
    config = write_config(tmp_path)
    keep = {'default_hooks.checkpoint.max_keep_ckpts': -1, 'train_cfg.max_epochs': 4}
    train(config, 'a', keep)
    before = {path.name: path.read_bytes() for path in Path('a').glob('epoch_*.pth')}
    os.utime('a/epoch_1.pth', (time.time() - 40,) * 2)
    train(config, 'a', {**keep, 'optim_wrapper.optimizer.lr': 0.05}, resume=f'a/{target}.pth')
    kept = {path.name: path.read_bytes() for path in Path('a').glob('2*/epoch_*.pth')}
    newer = {name for name in before if name > f'{target}.pth'}
    assert set(kept) == newer and all(kept[name] == before[name] for name in newer)
    assert not newer or 'checkpoints of the earlier run to a/2' in ''.join(capfd.readouterr())


def test_a_copy_has_the_times_of_copying(tmp_path, train):
    """`cp -r` and downloads write the files of a folder in any order."""
    config, keep = write_config(tmp_path), {'default_hooks.checkpoint.max_keep_ckpts': -1}
    train(config, 'a', {**keep, 'train_cfg.max_epochs': 10})
    for number, name in enumerate(('epoch_10', 'epoch_3', 'epoch_9', 'epoch_2')):
        os.utime(f'a/{name}.pth', (time.time() + number,) * 2)
    before, rest = contents('a'), Record()
    train(config, 'a', {**keep, 'train_cfg.max_epochs': 11}, resume=True, hooks=[rest])
    after = contents('a')
    assert len(rest.losses) == 4 and all(after[name] == data for name, data in before.items() if name[:5] == 'epoch')
    train(config, 'a', {**keep, 'train_cfg.max_epochs': 9}, resume='a/epoch_8.pth')
    moved = {path.name for path in Path('a').glob('2*/epoch_*.pth')}
    assert moved == {'epoch_9.pth', 'epoch_10.pth', 'epoch_11.pth'}


@pytest.mark.parametrize('name', ['last.pth', 'epoch_{}', 'a/{}.pth', '{}_{}.pth'])
def test_checkpoints_need_names_of_their_own(tmp_path, train, name):
    with pytest.raises(UserError, match='filename_tmpl=.* must be the name of a .pth file with {} for the number in'):
        train(write_config(tmp_path), options={'default_hooks.checkpoint.filename_tmpl': name})


@pytest.mark.parametrize('options', [dict(save_best=True), dict(rule='bigger'), dict(save_best=['mAP', 'mAP'])])
def test_options_of_saving_that_are_none_are_one_line(tmp_path, train, options):
    with pytest.raises(UserError, match=r'^CheckpointHook: [^\n]*(rule|save_best)'):
        train(write_config(tmp_path, text=f"default_hooks['checkpoint'].update({options})\n"))


def test_the_best_by_another_metric_is_no_best(tmp_path, train, monkeypatch):
    monkeypatch.setattr(ToyMetric, 'compute_metrics', lambda metric, results: dict(mAP=0.9, mAP_75=0.1))
    config, key = write_config(tmp_path), 'default_hooks.checkpoint.save_best'
    train(config, 'a', {key: 'mAP', 'train_cfg.max_epochs': 1})
    runner = train(config, 'a', {key: 'mAP_75'}, resume=True)
    assert Path(runner.message_hub.get_info('best_ckpt')).name == 'best_mAP_75_epoch_2.pth'
    assert runner.message_hub.get_info('best_score') == 0.1 and Path('a/best_mAP_epoch_1.pth').exists()


def test_resuming_into_a_folder_of_another_run_keeps_that_one(tmp_path, train):
    config = write_config(tmp_path)
    train(config, 'a', {'train_cfg.max_epochs': 1})
    train(config, 'b', seed=1)
    before = contents('b')
    train(config, 'b', resume='a/epoch_1.pth')
    moved = {path.name: path.read_bytes() for path in Path('b').glob('2*/*.pth')}
    assert before == moved


def test_a_damaged_newest_file_is_put_aside(tmp_path, train, capsys):
    config = write_config(tmp_path)
    train(config, 'a')
    Path('a/epoch_2.pth').write_bytes(Path('a/epoch_2.pth').read_bytes()[:1000])
    train(config, 'a', resume=True)
    out = capsys.readouterr().out
    assert 'skipped: a/epoch_2.pth is damaged' in out and 'moved 2 checkpoints' in out
    assert [path.stat().st_size for path in Path('a').glob('2*/epoch_2.pth')] == [1000]


class Kill(BaseException):
    """Of a process, which does nothing more."""


@pytest.mark.parametrize('place', ['_save_checkpoint_with_step', '_save_best_checkpoint', '_remove_outdated'])
def test_runs_that_were_killed_leave_no_more_than_the_last_and_the_best(tmp_path, train, monkeypatch, place):
    """Killed in each epoch after a file is written, before what it replaces is removed."""
    monkeypatch.setattr(ToyMetric, 'compute_metrics', lambda metric, results: dict(mAP=metric.number()))
    numbers = iter(range(100))
    monkeypatch.setattr(ToyMetric, 'number', lambda metric: next(numbers) / 100, raising=False)
    config = write_config(tmp_path)
    options = {'train_cfg.max_epochs': 8, 'default_hooks.checkpoint.max_keep_ckpts': 3}
    method = getattr(SafeCheckpointHook, place)
    remove = SafeCheckpointHook._remove_outdated
    for epoch in range(1, 8):
        def killed(hook, runner, *args, epoch=epoch, **options):
            doing = runner.epoch + (place == '_save_checkpoint_with_step')
            if doing == epoch:
                monkeypatch.setattr(SafeCheckpointHook, '_remove_outdated', lambda *_: None)
                if place != '_remove_outdated':
                    method(hook, runner, *args, **options)
                raise Kill
            return method(hook, runner, *args, **options)

        monkeypatch.setattr(SafeCheckpointHook, place, killed)
        with pytest.raises(Kill):
            train(config, 'a', options, resume=True)
        monkeypatch.setattr(SafeCheckpointHook, '_remove_outdated', remove)
        monkeypatch.setattr(SafeCheckpointHook, place, method)
    runner = train(config, 'a', options, resume=True)
    best = os.path.basename(runner.message_hub.get_info('best_ckpt'))
    assert set(contents('a')) == {'epoch_6.pth', 'epoch_7.pth', 'epoch_8.pth', best} and best.endswith('epoch_8.pth')


def test_what_a_signal_saved_goes_once_training_is_past_it(tmp_path, train):
    config = write_config(tmp_path)
    with pytest.raises(Interrupted):
        train(config, 'a', hooks=[SignalAt(1)])
    assert set(contents('a')) == {'interrupted.pth'}
    train(config, 'a', resume=True)
    assert 'interrupted.pth' not in contents('a') and 'epoch_2.pth' in contents('a')


def test_several_bests_keep_one_file_each(tmp_path, train, monkeypatch):
    scores = iter([dict(mAP=0.1, mAR=0.9), dict(mAP=0.2, mAR=0.8), dict(mAP=0.3, mAR=0.95)])
    monkeypatch.setattr(ToyMetric, 'compute_metrics', lambda metric, results: next(scores))
    options = {'default_hooks.checkpoint.save_best': ['mAP', 'mAR'], 'train_cfg.max_epochs': 3,
               'default_hooks.checkpoint.rule': 'greater', 'default_hooks.checkpoint.max_keep_ckpts': 1}  # fmt: skip
    train(write_config(tmp_path), 'a', options)
    assert set(contents('a')) == {'epoch_3.pth', 'best_mAP_epoch_3.pth', 'best_mAR_epoch_3.pth'}
