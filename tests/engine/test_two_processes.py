"""What each process has of its own (running statistics, CBN's history) survives a resume to the bit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy_task import ENVIRONMENT, write_config

from mmdet.checkpoints import read_checkpoint

ROOT = Path(__file__).resolve().parents[2]
CBN = """
import torch
from toy_task import ToyDetector
from mmdet.layers import ConvModule
from mmdet.registry import MODELS

@MODELS.register_module()
class CbnDetector(ToyDetector):
    '''A convolution with CBN, then the toy's BatchNorm.'''
    def __init__(self, **options):
        super().__init__(**options)
        self.stem = ConvModule(3, 4, 1, norm_cfg=dict(type='CBN', buffer_num=2, burnin_iters=1))
        forward = self.stem.forward
        self.stem.forward = lambda x: forward(x[..., None, None]).flatten(1)
"""
CONFIG = """
custom_imports['imports'] += ['cbn_toy']
model = dict(type='CbnDetector')
train_dataloader['dataset']['length'] = 16
train_cfg['val_interval'] = 5
default_hooks['checkpoint'] = dict(type='CheckpointHook', by_epoch=False, interval=1, max_keep_ckpts=-1)
"""


@pytest.fixture
def train(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'cbn_toy.py').write_text(CBN)
    config = write_config(tmp_path, text=CONFIG)
    env = {**ENVIRONMENT, 'PYTHONPATH': f'{tmp_path}{os.pathsep}{ENVIRONMENT["PYTHONPATH"]}'}

    def run(work_dir: str, *arguments: str, processes: int = 2) -> None:
        command = [sys.executable, ROOT / 'tools' / 'train.py', config, '--work-dir', work_dir, '--seed', '0',
                   '--gpus', processes, *arguments]
        done = subprocess.run([str(part) for part in command], env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]

    return run


def differences(a, b, place: str = '') -> list[str]:
    """Where two checkpoints differ, but for what a clock or a path says."""
    if isinstance(a, dict) and isinstance(b, dict):
        return [found for key in a.keys() | b.keys() for found in differences(a.get(key), b.get(key), f'{place}.{key}')]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [found for i, pair in enumerate(zip(a, b)) for found in differences(*pair, f'{place}[{i}]')]
    return [] if (a.equal(b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b) else [place]


@pytest.mark.slow
def test_two_processes_resume_to_the_bit(train):
    train('whole')
    keys = ('state_dict', 'optimizer', 'param_schedulers', 'cbn', 'rank_cbn', 'rank_buffers')
    middle = read_checkpoint('whole/iter_3.pth')
    assert any('running_mean' in name for name in middle['rank_buffers'][0]) and len(middle['rank_cbn']) == 1
    for start in (3, 4):  # in the middle of the first epoch, and before the second
        train(f'from_{start}', '--resume', f'whole/iter_{start}.pth')
        for iteration in (5, 8):
            theirs, ours = (read_checkpoint(f'{d}/iter_{iteration}.pth') for d in ('whole', f'from_{start}'))
            assert differences({k: ours.get(k) for k in keys}, {k: theirs.get(k) for k in keys}) == []


@pytest.mark.slow
def test_another_number_of_processes_resumes_from_the_mean(train):
    train('two', '--cfg-options', 'train_cfg.max_epochs=1')
    middle = read_checkpoint('two/iter_3.pth')
    own = middle['rank_buffers'][0]['head.norm.running_mean']
    mean = (middle['state_dict']['head.norm.running_mean'] + own) / 2
    spy = Path('spy.py')
    spy.write_text("""
from mmengine.hooks import Hook
from mmdet.registry import HOOKS

@HOOKS.register_module()
class Spy(Hook):
    def before_train_epoch(self, runner):
        print('resumed mean', runner.model.head.norm.running_mean.tolist(), flush=True)
""")
    with open('toy.py', 'a') as file:
        file.write("custom_imports['imports'] += ['spy']\ncustom_hooks = [dict(type='Spy')]\n")
    done = subprocess.run([sys.executable, str(ROOT / 'tools' / 'train.py'), 'toy.py', '--work-dir', 'one', '--resume',
                           'two/iter_3.pth', '--cfg-options', 'train_cfg.max_epochs=1'], capture_output=True, text=True,
                          env={**ENVIRONMENT, 'PYTHONPATH': f'{Path.cwd()}{os.pathsep}{ENVIRONMENT["PYTHONPATH"]}'})
    assert f'resumed mean {mean.tolist()}' in done.stdout, done.stdout[-1000:] + done.stderr[-1000:]
