"""The command lines on generated shapes, where they meet a GPU: mixed precision, resuming, nccl, determinism."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmdet.checkpoints import read_checkpoint
from projects.demo.shapes import write_shapes

ROOT = Path(__file__).resolve().parents[2]
CONFIG = f"""
_base_ = ['{ROOT}/configs/demo/mask_rcnn_r18_fpn_cbn_shapes.py']
norm_cfg = dict(type='CBN', buffer_num=2, burnin=None, burnin_iters=2)
model = dict(neck=dict(norm_cfg=norm_cfg),
             roi_head=dict(bbox_head=dict(norm_cfg=norm_cfg), mask_head=dict(norm_cfg=norm_cfg)))
train_cfg = dict(max_epochs=1, val_interval=1)
"""


@pytest.fixture(params=[pytest.param('cpu', marks=pytest.mark.slow), pytest.param('cuda', marks=pytest.mark.cuda)])
def device(request) -> str:
    return request.param


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('gpu')
    write_shapes(path / 'data' / 'shapes', 8, 4, 96, 0)
    (path / 'shapes.py').write_text(CONFIG)
    return path


@pytest.fixture
def run(device, folder):
    def run(*command) -> str:
        paths = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
        env = {**os.environ, 'PYTHONPATH': paths, 'PYTHONWARNINGS': 'ignore', 'OMP_NUM_THREADS': '1'}
        if device == 'cpu':
            env['CUDA_VISIBLE_DEVICES'] = ''
        done = subprocess.run([sys.executable, *map(str, command)], cwd=folder, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f'{done.stdout[-2000:]}\n{done.stderr[-3000:]}'
        return done.stdout

    return run


def weights(path: Path) -> dict:
    return read_checkpoint(str(path))['state_dict']


def test_mixed_precision_resumed_and_evaluated(run, device, folder):
    work = f'amp_{device}'
    train = [ROOT / 'tools' / 'train.py', 'shapes.py', '--amp', '--seed', 0, '--work-dir', work]
    assert ('(CPU)' in run(*train)) == (device == 'cpu')
    again = run(*train, '--resume', '--cfg-options', 'train_cfg.max_epochs=2')
    assert 'resumed epoch: 1, iter: 4' in again
    saved = read_checkpoint(str(folder / work / 'epoch_2.pth'))
    assert ('loss_scaler' in saved['optimizer']) == (device == 'cuda')
    assert saved['cbn'] and all(layer['window']['filled'] == 2 for layer in saved['cbn'].values())
    test = [ROOT / 'tools' / 'test.py', 'shapes.py', f'{work}/epoch_2.pth', '--eval', 'bbox', 'segm']
    assert 'segm_mAP' in run(*test, '--out', f'{device}.pkl') and (folder / f'{device}.pkl').exists()


def test_a_process_group_of_one(run, device, folder):
    """nccl's on a GPU, and the CPU group beside it."""
    out = run('-m', 'torch.distributed.run', '--nproc_per_node', 1, '--master_port', 29631, ROOT / 'tools' / 'train.py',
              'shapes.py', '--launcher', 'pytorch', '--seed', 0, '--work-dir', f'group_{device}')
    assert 'Finished.' in out and (folder / f'group_{device}' / 'epoch_1.pth').exists()


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two GPUs')
@pytest.mark.parametrize('device', ['cuda'])
def test_two_gpus(run, folder):
    run(ROOT / 'tools' / 'train.py', 'shapes.py', '--gpus', 2, '--seed', 0, '--work-dir', 'two')
    run(ROOT / 'tools' / 'test.py', 'shapes.py', 'two/epoch_1.pth', '--gpus', 2, '--eval', 'bbox', 'segm')


def test_deterministic_runs_are_equal_to_the_bit(run, device, folder):
    for name in 'ab':
        run(ROOT / 'tools' / 'train.py', 'shapes.py', '--deterministic', '--seed', 0, '--work-dir', f'{name}_{device}',
            '--cfg-options', 'val_dataloader=None', 'val_cfg=None', 'val_evaluator=None')
    first, second = (weights(folder / f'{name}_{device}' / 'epoch_1.pth') for name in 'ab')
    assert all(torch.equal(first[key], second[key]) for key in first)
