"""A resumed run continues to the bit, from an epoch's end or its middle, whatever loads the data."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from toy_task import CONFIG, ENVIRONMENT, ToyDataset, weights, write_config

from mmdet.checkpoints import read_checkpoint
from mmdet.config.errors import Interrupted, UserError
from mmdet.engine.seeding import SeededBatches, SeededDataset, derived_seed


class SignalAt(Hook):
    """Send this process a signal in a given iteration."""

    def __init__(self, iteration, signum=signal.SIGTERM):
        self.iteration, self.signum = iteration, signum

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.iteration:
            os.kill(os.getpid(), self.signum)


class Record(Hook):
    def __init__(self):
        self.losses, self.batches, self.lr = [], [], []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append(float(outputs['loss'].detach()))
        self.batches.append([sample.img_id for sample in data_batch['data_samples']])
        self.lr.append(runner.optim_wrapper.get_lr()['lr'][0])


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


WORKERS = dict([('train_dataloader.num_workers', 2)])


@pytest.mark.parametrize('options', [{}, WORKERS, {**WORKERS, 'train_dataloader.persistent_workers': True}])
def test_resumed_at_an_epochs_end(tmp_path, train, options):
    config = write_config(tmp_path)
    whole = Record()
    expected = weights(train(config, 'whole', {**options, 'train_cfg.max_epochs': 4}, hooks=[whole]))
    train(config, 'half', {**options, 'train_cfg.max_epochs': 2})
    rest = Record()
    resumed = train(config, 'half', {**options, 'train_cfg.max_epochs': 4}, resume=True, hooks=[rest])
    assert rest.batches == whole.batches[8:] and rest.lr == whole.lr[8:]
    assert rest.losses == whole.losses[8:]
    assert equal(weights(resumed), expected)
    assert resumed.epoch == 4 and resumed.iter == 16


@pytest.mark.parametrize('stop', [2, 3, 5, 7])
def test_resumed_in_the_middle_of_an_epoch(tmp_path, train, stop):
    config = write_config(tmp_path)
    whole = Record()
    expected = weights(train(config, 'whole', hooks=[whole]))
    with pytest.raises(Interrupted, match=f'SIGTERM after iteration {stop + 1}.*interrupted.pth.*--resume'):
        train(config, 'half', hooks=[SignalAt(stop)])
    rest = Record()
    resumed = train(config, 'half', resume=True, hooks=[rest])
    assert rest.batches == whole.batches[stop + 1 :] and rest.losses == whole.losses[stop + 1 :]
    assert equal(weights(resumed), expected) and resumed.iter == 8


def test_resumed_with_accumulated_gradients(tmp_path, train):
    """The signal comes in the middle of a step of three iterations, which is finished."""
    config, options = write_config(tmp_path), {'optim_wrapper.accumulative_counts': 3, 'train_cfg.max_epochs': 3}
    expected = weights(train(config, 'whole', options))
    with pytest.raises(Interrupted, match='SIGTERM after iteration 6 '):
        train(config, 'half', options, hooks=[SignalAt(4)])
    assert equal(weights(train(config, 'half', options, resume=True)), expected)


def test_number_of_workers_does_not_change_a_run(tmp_path, train):
    config = write_config(tmp_path)
    assert equal(weights(train(config, 'a')), weights(train(config, 'b', WORKERS)))


def test_seeds_make_runs_and_no_two_epochs_are_alike(tmp_path, train):
    config = write_config(tmp_path)
    records = [Record() for _ in range(3)]
    for name, seed, record in zip('abc', (0, 0, 1), records):
        train(config, name, WORKERS, seed=seed, hooks=[record])
    assert records[0].losses == records[1].losses != records[2].losses
    # The trap: workers restarted each epoch replay the same noise.
    keyed = SeededBatches(list(range(8)), 8, seed=0)
    assert len({derived_seed(0, epoch, 3) for epoch in range(10)}) == 10
    assert [i for i, _ in next(iter(keyed))] == list(range(8))


def test_a_samples_noise_is_its_own(tmp_path):
    data = SeededDataset(dict(type='ToyDataset', length=4))
    state = torch.get_rng_state()
    first, again, other = data[2, 7]['inputs'], data[2, 7]['inputs'], data[2, 8]['inputs']
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state()) and len(data) == 4 and data.metainfo['classes']


@pytest.mark.parametrize('sampler, options', [('InfiniteSampler', {}), ('InfiniteSampler', WORKERS),
                                              ('DefaultSampler', {})])
def test_iteration_based_loop_resumes_without_reading_the_past(tmp_path, train, sampler, options):
    text = CONFIG.replace('by_epoch=True, max_epochs=2, val_interval=1', 'by_epoch=False, max_iters=10, val_interval=5')
    text = text.replace("type='DefaultSampler', shuffle=True", f"type='{sampler}', shuffle=True")
    text = text.replace("dict(type='MultiStepLR', by_epoch=True", "dict(type='MultiStepLR', by_epoch=False")
    text = text.replace("type='CheckpointHook', interval=1", "type='CheckpointHook', by_epoch=False, interval=4")
    config = write_config(tmp_path, base=text)
    whole = Record()
    options = {'log_processor': dict(by_epoch=False), **options}
    expected = weights(train(config, 'whole', options, hooks=[whole]))
    with pytest.raises(Interrupted):
        train(config, 'half', options, hooks=[SignalAt(6)])
    rest = Record()
    resumed = train(config, 'half', options, resume=True, hooks=[rest])
    assert rest.batches == whole.batches[7:] and rest.losses == whole.losses[7:]
    assert equal(weights(resumed), expected)


def test_changed_schedule_is_applied_and_said(tmp_path, train, capfd):
    config = write_config(tmp_path)
    changed = {'train_cfg.max_epochs': 4, 'param_scheduler.1.milestones': [3], 'optim_wrapper.optimizer.lr': 0.2}
    whole, rest = Record(), Record()
    train(config, 'whole', changed, hooks=[whole])
    train(config, 'half')
    capfd.readouterr()
    train(config, 'half', changed, resume=True, hooks=[rest])
    log = ''.join(capfd.readouterr())
    lines = [line for line in log.splitlines() if 'the schedule has changed' in line]
    assert len(lines) == 1
    assert 'MultiStepLR.milestones [1, 3] -> [3]' in lines[0] and 'lr 0.1 -> 0.2' in lines[0]
    assert rest.lr == pytest.approx(whole.lr[8:])


def test_unchanged_schedule_is_not_mentioned(tmp_path, train, capfd):
    config = write_config(tmp_path)
    train(config, 'a', {'param_scheduler.1.end': 10})
    capfd.readouterr()
    train(config, 'a', {'param_scheduler.1.end': 10, 'train_cfg.max_epochs': 3}, resume=True)
    log = ''.join(capfd.readouterr())
    assert 'schedule has changed' not in log and 'metainfo' not in log and 'seed' not in log.replace(', seed 0', '')


def test_the_seed_of_the_run_goes_on(tmp_path, train, capfd):
    config = write_config(tmp_path)
    seed = train(config, 'a', seed=None).seed
    resumed = train(config, 'a', {'train_cfg.max_epochs': 3}, resume=True, seed=None)
    assert resumed.seed == seed
    train(config, 'a', {'train_cfg.max_epochs': 4}, resume=True, seed=seed + 1)
    assert f'the requested seed {seed + 1} would break its sequence' in ''.join(capfd.readouterr())


def test_resume_with_nothing_there_begins(tmp_path, train, capsys):
    assert train(write_config(tmp_path), 'new', resume=True).iter == 8
    assert 'nothing to resume in new' in capsys.readouterr().out


def test_weights_alone_are_not_resumed(tmp_path, train):
    train(write_config(tmp_path), 'a')
    best = str(next(Path('a').glob('best_*')))
    with pytest.raises(UserError, match='no state of a training.*load_from='):
        train(write_config(tmp_path), 'b', resume=best)


def test_resumed_with_the_classes_in_another_order(tmp_path, train, monkeypatch):
    config = write_config(tmp_path)
    train(config, 'a')
    monkeypatch.setattr(ToyDataset, 'metainfo', dict(classes=('square', 'circle')))
    with pytest.raises(UserError, match="epoch_2.pth was trained on the classes circle, square, the training data set"):
        train(config, 'a', {'train_cfg.max_epochs': 3}, resume=True)


def test_earlier_runs_are_kept(tmp_path, train, capsys):
    config = write_config(tmp_path)
    train(config, 'a')
    before = read_checkpoint('a/epoch_2.pth')['state_dict']
    train(config, 'a', seed=1)
    assert 'moved 3 checkpoints of the earlier run' in capsys.readouterr().out
    moved = list(Path('a').glob('2*/epoch_2.pth'))
    assert len(moved) == 1 and equal(read_checkpoint(str(moved[0]))['state_dict'], before)
    with pytest.raises(UserError, match=r'config \(differs in optim_wrapper.optimizer.lr\).*--work-dir.*--resume'):
        train(config, 'a', {'optim_wrapper.optimizer.lr': 0.3})
    assert Path('a/epoch_2.pth').exists()
    Path('file').write_text('')
    with pytest.raises(UserError, match='--work-dir file is a file'):
        train(config, 'file')


def test_one_run_at_a_time_in_a_folder(tmp_path, train):
    config = write_config(tmp_path)
    hold = ('import sys; from mmdet.engine.work_dir import _lock\n'
            '_lock("a", "--work-dir"); print("held", flush=True); sys.stdin.read()')
    Path('a').mkdir()
    with subprocess.Popen([sys.executable, '-c', hold], env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True) as other:  # fmt: skip
        assert other.stdout.readline() == 'held\n'
        with pytest.raises(UserError, match=f'--work-dir a: another run is training there .process {other.pid} on '):
            train(config, 'a')
        other.kill()
    train(config, 'a')
    train(config, 'a')  # this very process may


def test_a_config_is_not_replaced_by_its_resolved_form(tmp_path, train):
    write_config(tmp_path)
    child = write_config(tmp_path, 'child.py', base="_base_ = './toy.py'\n")
    with pytest.raises(UserError, match='use another --work-dir'):
        train(child, tmp_path)
    assert child.read_text() == "_base_ = './toy.py'\n"


def test_nan_stops_before_it_is_saved(tmp_path, train):
    config = write_config(tmp_path)
    with pytest.raises(UserError) as caught:
        train(config, 'a', {'train_dataloader.dataset.bad_item': 3, 'train_dataloader.sampler.shuffle': False})
    text = str(caught.value)
    for part in ('epoch 1, iteration 2', 'loss_toy=nan', '102, 103', 'No checkpoint'):
        assert part in text
    assert not list(Path('a').glob('*.pth'))


def test_save_best_of_a_metric_that_is_not_there(tmp_path, train):
    config = write_config(tmp_path)
    with pytest.raises(UserError, match="save_best='bbox_mAP' is none of the metrics: mAP. .*epoch_1.pth"):
        train(config, 'a', {'default_hooks.checkpoint.save_best': 'bbox_mAP'})
    with pytest.raises(UserError, match="save_best=quality: give a metric.* rule='greater'"):
        train(config, 'b', {'default_hooks.checkpoint.save_best': 'quality'})


def test_nan_weights_are_never_saved(tmp_path, train):
    class Spoil(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if runner.iter == 7:
                runner.model.stem.weight.data[0] = float('nan')

    with pytest.raises(UserError, match='stem.weight holds NaN.*last good checkpoint is .*epoch_1.pth'):
        train(write_config(tmp_path), 'a', hooks=[Spoil()])
    assert not Path('a/epoch_2.pth').exists()


def test_second_signal_and_handlers_are_restored(tmp_path, train):
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    train(write_config(tmp_path), 'a')
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    with pytest.raises(UserError, match='the loss is not finite'):
        train(write_config(tmp_path), 'c', {'train_dataloader.dataset.bad_item': 3})
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    with pytest.raises(Interrupted, match='SIGINT'):
        train(write_config(tmp_path), 'b', hooks=[SignalAt(1, signal.SIGINT)])
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers


def test_log_has_memory_time_and_no_thousand_lines(tmp_path, train):
    train(write_config(tmp_path), 'a')
    text = next(Path('a').glob('*/*.log')).read_text()
    lines = text.splitlines()
    assert 'Training ToyDetector on ToyDataset (8 images, 2 classes), 1 x 2 images a step (CPU)' in lines[0]
    assert all('memory: ' in line and 'eta: ' in line for line in lines if 'Epoch(train)' in line)
    assert len(lines) < 40


@pytest.mark.parametrize('batch_size, place', [(1, 12), (4, 3)])
def test_resumed_with_epochs_of_another_length(tmp_path, train, capfd, batch_size, place):
    """Epochs of 4 iterations, stopped after 6: with 8 (or 2) an epoch that is iteration 12 (or 3)."""
    config = write_config(tmp_path)
    with pytest.raises(Interrupted):
        train(config, 'a', hooks=[SignalAt(5)])
    whole, rest = Record(), Record()
    train(config, 'b', {'train_dataloader.batch_size': batch_size}, hooks=[whole])
    train(config, 'a', {'train_dataloader.batch_size': batch_size}, resume=True, hooks=[rest])
    assert f'iteration 6 counts as {place}' in ''.join(capfd.readouterr())
    assert rest.batches == whole.batches[place:]  # the images that the epoch still has to show


def test_two_runs_in_one_process_and_second_do_not_share_a_log(tmp_path, train):
    runners = [train(write_config(tmp_path), name) for name in 'ab']
    assert runners[0].logger is not runners[1].logger and runners[0].visualizer is not runners[1].visualizer
    assert runners[0].message_hub is not runners[1].message_hub


def test_pretrained_weights_are_not_needed_to_resume():
    from mmdet.engine.runner import drop_pretrained

    other = dict(init_cfg=dict(type='Normal'))
    model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='x')), neck=other)
    drop_pretrained(model)
    assert model == dict(backbone=dict(init_cfg=None), neck=other)
    file, random = dict(type='Pretrained', checkpoint='x'), dict(type='Normal')
    model = dict(backbone=dict(init_cfg=[random, file]), neck=[dict(init_cfg=[file])])
    drop_pretrained(model)
    assert model == dict(backbone=dict(init_cfg=[random]), neck=[dict(init_cfg=None)])
