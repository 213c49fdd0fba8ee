"""Checkpoints of a run: no pickled code, never half written, resumed from the newest that is whole."""

import builtins
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.fileio import get_file_backend
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from toy_task import ENVIRONMENT, ToyDetector, ToyMetric, write_config

from mmdet.apis import init_detector
from mmdet.checkpoints import read_checkpoint
from mmdet.cli import test as evaluate
from mmdet.config.errors import UserError
from mmdet.config.output import write_atomically
from mmdet.datasets import CocoDataset
from mmdet.engine.hooks import checkpoint as checkpoint_hooks
from mmdet.engine.saving import AtomicLocalBackend, newest_resumable


def test_saved_runs_hold_no_code(tmp_path, train):
    train(write_config(tmp_path))
    checkpoint = torch.load('run/epoch_2.pth', weights_only=True)
    assert {'meta', 'state_dict', 'optimizer', 'message_hub', 'param_schedulers'} <= set(checkpoint)
    restored = read_checkpoint('run/epoch_2.pth')
    assert isinstance(restored['message_hub']['log_scalars']['train/loss'], HistoryBuffer)
    assert isinstance(restored['param_schedulers'][1]['milestones'], Counter)


def test_a_payload_is_refused_whatever_loads_it(tmp_path, train):
    """onedl-mmengine's own loader falls back to running what it finds; this module's stands in its place."""

    class Evil:
        def __reduce__(self):
            return os.system, (f'touch {tmp_path}/ran',)

    evil = str(tmp_path / 'evil.pth')
    torch.save(dict(meta={}, state_dict=ToyDetector().state_dict(), extra=Evil()), evil)
    config = write_config(tmp_path)
    for how in (dict(options={'load_from': evil}), dict(resume=evil)):
        with pytest.raises(UserError, match='evil.pth holds pickled Python objects'):
            train(config, 'a', **how)
    with pytest.raises(UserError, match='evil.pth holds pickled Python objects'):
        CheckpointLoader.load_checkpoint(evil)
    assert not (tmp_path / 'ran').exists()


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / 'a.pth'
    write_atomically(path, b'old')
    monkeypatch.setattr(os, 'fsync', lambda fd: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    with pytest.raises(OSError, match='No space left'):
        write_atomically(path, b'new')
    assert path.read_bytes() == b'old' and os.listdir(tmp_path) == ['a.pth']


@pytest.mark.slow
def test_killed_while_writing_leaves_a_whole_file(tmp_path):
    path = tmp_path / 'a.bin'
    code = f"""
from mmdet.config.output import write_atomically
i = 0
while True:
    write_atomically({str(path)!r}, bytes([i % 256]) * 20_000_000)
    i += 1
    print(i, flush=True)
"""
    for delay in (0.0, 0.013, 0.03):
        process = subprocess.Popen([sys.executable, '-c', code], env=ENVIRONMENT, stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        data = path.read_bytes()
        assert len(data) == 20_000_000 and len(set(data)) == 1


def test_runs_save_through_the_atomic_backend(tmp_path, train):
    train(write_config(tmp_path))
    assert isinstance(get_file_backend('run/x.pth'), AtomicLocalBackend)
    assert not list(Path('run').glob('.*.tmp'))


def odd_files(whole: bytes) -> dict[str, tuple[bytes, str]]:
    """What may lie in a work dir as its newest .pth, and what is said of it."""
    content = torch.load(io.BytesIO(whole), weights_only=True)

    def saved(**changes) -> bytes:
        buffer = io.BytesIO()
        torch.save({key: value for key, value in {**content, **changes}.items() if value != 'gone'}, buffer)
        return buffer.getvalue()

    bit = bytearray(whole)
    bit[bit.index(content['state_dict']['stem.weight'].numpy().tobytes())] ^= 4
    optimizer, info = content['optimizer'], content['message_hub']['runtime_info']
    history = dict(loss=HistoryBuffer([1.0], [1]))  # as a Runner of mmengine alone saves it
    return {
        'half': (whole[: len(whole) // 2], 'is damaged'),  # killed by a tool that writes in place
        'a bit': (bytes(bit), 'is damaged: the checksum of '),
        'empty': (b'', 'is empty'),
        'meta is None': (saved(meta=None), 'it lacks meta.epoch, meta.iter'),
        'no meta': (saved(meta='gone'), 'it lacks meta.epoch, meta.iter'),
        'meta is a list': (saved(meta=[1, 2]), 'it lacks meta.epoch, meta.iter'),
        'iteration is None': (saved(meta=dict(content['meta'], iter=None)), 'it lacks meta.iter'),
        'iteration is negative': (saved(meta=dict(content['meta'], iter=-4)), 'it lacks meta.iter'),
        'CBN is None': (saved(cbn=None), 'it lacks cbn'),
        'schedulers are None': (saved(param_schedulers=None), 'it lacks param_schedulers'),
        'optimizer is a list': (saved(optimizer=[]), 'it lacks optimizer'),
        'state is a list': (saved(optimizer=dict(optimizer, state=[1])), 'it lacks optimizer'),
        'state of no weight': (saved(optimizer=dict(optimizer, state={99: {}})), 'it lacks optimizer'),
        'no groups': (saved(optimizer=dict(state=optimizer['state'])), 'it lacks optimizer'),
        'a group is a text': (saved(optimizer=dict(optimizer, param_groups=['x'])), 'it lacks optimizer'),
        'a scheduler is a text': (saved(param_schedulers=['x']), 'it lacks param_schedulers'),
        'seed is a text': (saved(meta=dict(content['meta'], seed='x')), 'it lacks meta.seed'),
        'epochs of 0': (saved(meta=dict(content['meta'], iterations_per_epoch=0)), 'it lacks meta.iterations_per'),
        'best is a number': (saved(message_hub=dict(content['message_hub'], runtime_info=dict(info, best_ckpt=7))),
                             'it lacks message_hub.runtime_info.best_ckpt'),
        'no message hub': (saved(message_hub='gone'), 'it lacks message_hub.log_scalars'),
        'empty message hub': (saved(message_hub={}), 'it lacks message_hub.log_scalars'),
        'weights': (saved(optimizer='gone', message_hub='gone'), 'it lacks optimizer, message_hub.log_scalars'),
        'of mmengine': (saved(message_hub=dict(content['message_hub'], log_scalars=history)), 'it lacks optimizer'),
        'a list': (pickle.dumps([1], 2), 'holds a list, not a checkpoint'),
    }  # fmt: skip


def test_newest_that_is_whole_is_resumed(tmp_path, train, capsys):
    train(write_config(tmp_path))
    assert newest_resumable('run').path == 'run/epoch_2.pth'
    assert newest_resumable('elsewhere') is None
    capsys.readouterr()
    for name, (data, said) in odd_files(Path('run/epoch_2.pth').read_bytes()).items():
        Path('run/newest.pth').write_bytes(data)
        os.utime('run/newest.pth', (4e9, 4e9))
        assert newest_resumable('run').path == 'run/epoch_2.pth', name
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 1 and lines[0].startswith('skipped: run/newest.pth ') and said in lines[0], (name, lines)
    Path('run/newest.pth').unlink()
    Path('run/newest.pth').symlink_to('gone.pth')
    resumed = train(write_config(tmp_path), options={'train_cfg.max_epochs': 3}, resume=True)
    assert 'skipped: run/newest.pth is no file, or a link to one' in capsys.readouterr().out and resumed.epoch == 3


def test_a_folder_in_which_nothing_can_be_resumed_is_left_as_it_is(tmp_path, train):
    Path('run').mkdir()
    torch.save(dict(state_dict=dict(a=torch.zeros(1))), 'run/epoch_1.pth')
    before = Path('run/epoch_1.pth').read_bytes()
    with pytest.raises(UserError, match='none of the 1 checkpoints in run can be resumed.*another --work-dir'):
        train(write_config(tmp_path), resume=True)
    assert Path('run/epoch_1.pth').read_bytes() == before


@pytest.fixture
def opens(monkeypatch) -> Counter:
    """How often each .pth is opened for reading, by whatever opens it."""
    counts, real = Counter(), builtins.open

    def counting(file, mode='r', *args, **kwargs):
        if str(file).endswith('.pth') and 'r' in mode:
            counts[os.path.basename(file)] += 1
        return real(file, mode, *args, **kwargs)

    monkeypatch.setattr(builtins, 'open', counting)
    return counts


def test_a_file_is_opened_once(tmp_path, train, opens, monkeypatch):
    config = write_config(tmp_path)
    train(config)
    opens.clear()
    train(config, options={'train_cfg.max_epochs': 3}, resume='run/epoch_2.pth')
    assert opens == {'epoch_2.pth': 1}
    opens.clear()
    train(config, options={'train_cfg.max_epochs': 4}, resume=True)
    assert opens == {'epoch_3.pth': 1}
    opens.clear()
    train(config, 'other', options={'load_from': 'run/epoch_4.pth'})
    assert opens == {'epoch_4.pth': 1}
    opens.clear()
    evaluate.main([str(config), 'run/epoch_4.pth', '--work-dir', 'test'])
    assert opens == {'epoch_4.pth': 1}
    opens.clear()
    assert init_detector(str(config), 'run/epoch_4.pth', device='cpu').dataset_meta['classes'] == ('circle', 'square')
    assert opens == {'epoch_4.pth': 1}


def test_what_was_opened_is_let_go(tmp_path, train):
    """The Runner keeps what it was asked to load, and would keep all weights and the optimizer's state twice."""
    train(write_config(tmp_path))
    opened = read_checkpoint('run/epoch_2.pth')
    runner = train(write_config(tmp_path), options={'train_cfg.max_epochs': 3}, resume='run/epoch_2.pth')
    assert len(opened) > 3 and str(runner._load_from) == 'run/epoch_2.pth' and len(runner._load_from) == 0


PLAIN_RUNNER = """
import sys
from mmengine.config import Config
from mmengine.runner import Runner
assert not any(name.startswith('mmdet.engine') for name in sys.modules)
cfg = Config.fromfile('toy.py', lazy_import=False)
cfg.update(work_dir='run', resume=len(sys.argv) > 1)
cfg.train_cfg.max_epochs = 2 + len(sys.argv)
runner = Runner.from_cfg(cfg)
runner.train()
print('trained', runner.epoch, runner.message_hub.get_scalar('train/loss').data[0].size)
"""


def test_mmengines_own_runner_reads_what_it_saved(tmp_path):
    """From Python, without a tool or a function of this package."""
    write_config(tmp_path)
    for arguments, epochs in (((), 3), (('resume',), 4)):
        command = [sys.executable, '-c', PLAIN_RUNNER, *arguments]
        ended = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
        assert f'trained {epochs} {4 * epochs}\n' in ended.stdout, ended.stderr[-2000:]
        saved = torch.load(tmp_path / f'run/epoch_{epochs}.pth', weights_only=True)  # plain data
        assert saved['meta']['saved_by'].startswith('mmdet')
        assert newest_resumable(str(tmp_path / 'run')).path.endswith(f'epoch_{epochs}.pth')
    assert 'resumed epoch: 3, iter: 12' in ended.stdout + ended.stderr


class Folder(Hook):
    """What lies in the work dir whenever a checkpoint is about to be written."""

    def __init__(self):
        self.seen = []

    def before_save_checkpoint(self, runner, checkpoint):
        self.seen.append({p.name for p in Path(runner.work_dir).glob('*.pth')})


def test_an_old_checkpoint_stays_until_the_new_one_is_written(tmp_path, train, monkeypatch):
    scores = iter([0.1, 0.2, 0.3])
    monkeypatch.setattr(ToyMetric, 'compute_metrics', lambda self, results: dict(mAP=next(scores)))
    folder = Folder()
    options = {'default_hooks.checkpoint.max_keep_ckpts': 1, 'train_cfg.max_epochs': 3}
    train(write_config(tmp_path), options=options, hooks=[folder])
    assert {p.name for p in Path('run').glob('*.pth')} == {'epoch_3.pth', 'best_mAP_epoch_3.pth'}
    first = folder.seen.index(set())
    assert first == 0 and all(any(name.startswith('epoch') for name in names) for names in folder.seen[1:])
    assert all(any(name.startswith('best') for name in names) for names in folder.seen[3:])


def test_labels_in_another_order_than_mmdetections_are_said(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(checkpoint_hooks, 'say', said.append)
    (tmp_path / 'x.jpg').touch()
    content = dict(images=[dict(id=1, file_name='x.jpg', width=9, height=9)],
                   categories=[dict(id=i, name=name) for i, name in ((7, 'dog'), (3, 'bird'), (5, 'cat'))])  # fmt: skip
    (tmp_path / 'a.json').write_text(json.dumps(content))

    def compare(classes, **meta):
        dataset = CocoDataset(ann_file='a.json', data_root=str(tmp_path), metainfo=dict(classes=classes),
                              pipeline=[], test_mode=True)  # fmt: skip
        checkpoint_hooks.compare_classes(dict(dataset_meta=dict(classes=classes), **meta), dataset, 'x.pth')

    compare(('dog', 'cat'))
    compare(('cat', 'dog'), iterations_per_epoch=9)
    assert said == []
    compare(('cat', 'dog'))
    assert len(said) == 1 and 'in mmdetection that of the annotation file (dog, cat)' in said[0]


def test_classes_in_another_order_are_refused_in_testing(monkeypatch):
    said = []
    monkeypatch.setattr(checkpoint_hooks, 'say', said.append)
    dataset = SimpleNamespace(metainfo=dict(classes=('cat', 'dog')))
    for classes in (('cat', 'dog'), None):
        checkpoint_hooks.compare_classes(dict(dataset_meta=dict(classes=classes)), dataset, 'x.pth')
    checkpoint_hooks.compare_classes({}, dataset, 'x.pth')
    with pytest.raises(UserError, match=r'x.pth was trained on the classes dog, cat, the test .* cat, dog: give'):
        checkpoint_hooks.compare_classes(dict(dataset_meta=dict(classes=['dog', 'cat'])), dataset, 'x.pth')
    assert said == []
    checkpoint_hooks.compare_classes(dict(dataset_meta=dict(classes=['Katze', 'Hund'])), dataset, 'x.pth')
    assert len(said) == 1 and 'the classes Katze, Hund, the test data set has cat, dog' in said[0]
