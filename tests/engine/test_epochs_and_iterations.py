"""Loops that count iterations or epochs, and what counts along with them: right, or refused before training."""

import json
from pathlib import Path

import pytest
from toy_task import CONFIG, ToyDataset, write_config

from mmdet.cli.curves import read_log

ITERATIONS = CONFIG.replace('by_epoch=True, max_epochs=2, val_interval=1',
                             'by_epoch=False, max_iters=14, val_interval=5')
SCHEDULE = "dict(type='MultiStepLR', by_epoch=False, milestones=[4, 9], gamma=0.5)"
SAVING = "dict(type='CheckpointHook', by_epoch=False, interval=5)"
RIGHT = ITERATIONS.replace("dict(type='MultiStepLR', by_epoch=True, milestones=[1, 3], gamma=0.5)", SCHEDULE).replace(
    "dict(type='CheckpointHook', interval=1, save_best='auto')", SAVING)  # fmt: skip


@pytest.fixture
def train(tmp_path, run_tool, monkeypatch):
    """train(config text, ...): the status with which tools/train.py ends, and what it prints."""

    monkeypatch.setattr('time.sleep', lambda seconds: None)  # mmengine waits 2 s after each pass over the data

    def run(text: str, *words) -> tuple[int, str]:
        status, out, err = run_tool('train.py', write_config(tmp_path, base=text), '--work-dir', 'run', *words)
        return status, out + err

    return run


def scalars() -> list[dict]:
    return [json.loads(line) for line in next(Path('run').glob('*/vis_data/scalars.json')).read_text().splitlines()]


def test_iterations_count_everywhere(train):
    """The schedule, the log, checkpoints and evaluations of 14 iterations of 4 an epoch."""
    status, out = train(RIGHT + "log_processor = dict(type='LogProcessor', by_epoch=True)\n")
    assert status == 0 and 'images a step (CPU), 14 iterations, seed' in out and 'Iter(train) [14/14]' in out
    assert 'the log counts iterations, as train_cfg does' in out
    assert {path.name for path in Path('run').glob('*.pth')} == {'iter_5.pth', 'iter_10.pth', 'iter_14.pth'}
    logged = scalars()
    lr = {entry['iter']: entry['lr'] for entry in logged if 'lr' in entry}
    assert [lr[i] for i in (4, 5, 9, 10, 14)] == pytest.approx([0.1, 0.05, 0.05, 0.025, 0.025])
    assert [entry['step'] for entry in logged if 'mAP' in entry] == [5, 10, 14]
    assert [len(part) for part in read_log(Path('run'))] == [14, 3]  # of mmdet curves


def test_checkpoints_that_the_config_does_not_speak_of(train):
    assert train(RIGHT.replace(f'checkpoint={SAVING}', ''))[0] == 0
    assert {path.name for path in Path('run').glob('*.pth')} == {'iter_5.pth', 'iter_10.pth', 'iter_14.pth'}


@pytest.mark.parametrize('right, wrong, place', [
    (SCHEDULE, "dict(type='MultiStepLR', milestones=[1, 3])", 'param_scheduler.1 (MultiStepLR)'),  # by default
    (SCHEDULE, "dict(type='CosineAnnealingLR', by_epoch=True, T_max=3)", 'param_scheduler.1 (CosineAnnealingLR)'),
    (SAVING, "dict(type='CheckpointHook', interval=1)", 'default_hooks.checkpoint (CheckpointHook)'),
    ('visualizer =', "custom_hooks = [dict(type='ProfilerHook')]\nvisualizer =", 'custom_hooks.0 (ProfilerHook)'),
])  # fmt: skip
def test_what_waits_for_an_epoch_that_never_ends(train, right, wrong, place):
    assert RIGHT.count(right) == 1
    status, out = train(RIGHT.replace(right, wrong))
    assert status == 2 and out.count('\n') == 1
    assert f'{place} counts epochs, and train_cfg iterations: its turn would never come. Set its by_epoch=False' in out


@pytest.mark.parametrize('schedule, rates', [
    ("dict(type='MultiStepLR', milestones=[1, 3], gamma=0.5, end=9, convert_to_iter_based=True)",
     [0.1, 0.05, 0.05, 0.025]),
    ("dict(type='ReduceOnPlateauLR', monitor='mAP', rule='less', patience=0, threshold=9, factor=0.5)",
     [0.1, 0.1, 0.05, 0.025]),
])  # fmt: skip
def test_schedules_that_count_epochs_and_act_all_the_same(train, schedule, rates):
    """One that counts passes over the data (4 iterations), and one that counts evaluations (every 5)."""
    status, out = train(RIGHT.replace(SCHEDULE, schedule))
    assert status == 0, out
    if 'end=9' in schedule:
        status, out_without = train(RIGHT.replace(SCHEDULE, schedule.replace('end=9, ', '')))
        assert status == 2 and 'param_scheduler.1 (MultiStepLR) has no end: it would be the first pass' in out_without
    lr = {entry['iter']: entry['lr'] for entry in scalars() if 'lr' in entry}
    assert [lr[i] for i in (4, 5, 10, 13)] == pytest.approx(rates)


@pytest.mark.parametrize('text', [RIGHT, CONFIG])
def test_a_schedule_of_evaluations_counts_neither(train, text):
    """As one may write it where all others need by_epoch=False; mmengine asserts."""
    status, out = train(text + "param_scheduler = dict(type='ReduceOnPlateauLR', monitor='mAP', by_epoch=False)\n")
    assert status == 2 and 'param_scheduler (ReduceOnPlateauLR) counts evaluations, in either kind of loop' in out


@pytest.mark.parametrize('loader', ['train_dataloader', 'val_dataloader'])
def test_an_endless_sampler_where_the_end_is_waited_for(train, run_tool, loader):
    shuffle = {'train_dataloader': 'True', 'val_dataloader': 'False'}[loader]
    text = CONFIG.replace(f"'DefaultSampler', shuffle={shuffle}", f"'InfiniteSampler', shuffle={shuffle}")
    status, out = train(text)
    assert status == 2 and f"{loader}.sampler.type='InfiniteSampler': it never comes to the end of the data" in out
    if loader == 'val_dataloader':  # test_dataloader too
        status, _, err = run_tool('test.py', 'toy.py', 'x.pth')
        assert status == 2 and "test_dataloader.sampler.type='InfiniteSampler'" in err


def test_an_endless_sampler_counts_iterations(train):
    status, out = train(RIGHT.replace("'DefaultSampler', shuffle=True", "'InfiniteSampler', shuffle=True"))
    assert status == 0 and 'Iter(train) [14/14]' in out


@pytest.mark.parametrize('options, loader', [
    (['train_dataloader.drop_last=True', 'train_dataloader.batch_size=9'], 'train'),
    (["train_dataloader.batch_sampler={'type': 'AspectRatioBatchSampler', 'drop_last': True}",
      'train_dataloader.batch_size=9'],
     'train'),
    (['val_dataloader.drop_last=True', 'val_dataloader.batch_size=9'], 'val'),
])  # fmt: skip
def test_no_batch_at_all(train, options, loader):
    status, out = train(CONFIG.replace("checkpoint=dict(type='CheckpointHook', interval=1, save_best='auto')", ''),
                        '--cfg-options', *options)  # fmt: skip
    images = {'train': 8, 'val': 5}[loader]
    assert status == 2 and f'{loader}_dataloader gives no batch: {images} images, and drop_last=True wants 9' in out


def test_no_image_at_all(train):
    status, out = train(CONFIG, '--cfg-options', 'train_dataloader.dataset.length=0')
    assert status == 2 and 'train_dataloader gives no batch: its data set has no image' in out


@pytest.mark.parametrize('text', [RIGHT, CONFIG])
def test_what_begins_after_the_end(train, text):
    status, out = train(text, '--cfg-options', 'train_cfg.val_begin=90')
    assert status == 2 and 'train_cfg.val_begin=90 is beyond the end' in out
    for option, said in (('begin_epoch', 'epochs'), ('begin_iter', 'iterations')):
        status, out = train(text + f"custom_hooks = [dict(type='EMAHook', {option}=90)]\n")
        assert status == 2 and f'EMAHook: {option}=90 is never reached in ' in out and f' {said}: nothing would' in out


@pytest.mark.parametrize('text', [RIGHT, CONFIG])
def test_intervals_of_evaluation_from_the_command_line(train, text):
    status, out = train(text, '--cfg-options', 'train_cfg.dynamic_intervals=[[1,1]]', 'train_cfg.val_interval=50')
    assert status == 0 and out.count('mAP: ') >= (14 if text == RIGHT else 2)


def test_drop_last_acts_beside_a_batch_sampler(train, monkeypatch):
    """8 images in batches of 3 are two whole ones."""
    monkeypatch.setattr(ToyDataset, 'get_data_info', lambda self, index: dict(width=2, height=1), raising=False)
    status, out = train(CONFIG, '--cfg-options', 'train_dataloader.drop_last=True', 'train_dataloader.batch_size=3',
                        'train_cfg.max_epochs=1', "train_dataloader.batch_sampler={'type': 'AspectRatioBatchSampler'}")
    assert status == 0 and '1 epochs of 2 iterations' in out


@pytest.mark.parametrize('loader', ['train_dataloader', 'val_dataloader'])
def test_the_order_is_up_to_the_sampler(train, loader):
    status, out = train(CONFIG + f"{loader}['shuffle'] = False\n")
    assert status == 2 and f"{loader}.shuffle=False: that is up to the dataloader's sampler, sampler=dict(" in out


def test_two_ways_to_name_a_loop(train):
    status, out = train(CONFIG.replace('by_epoch=True, max', "type='IterBasedTrainLoop', by_epoch=True, max"))
    assert status == 2 and "train_cfg has type='IterBasedTrainLoop' and by_epoch=True: one of them is to go" in out
    status, out = train(CONFIG.replace('by_epoch=True, max', 'max'))
    assert status == 2 and 'train_cfg has no type' in out
