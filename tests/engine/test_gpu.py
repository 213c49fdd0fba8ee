"""What the run-time does where there is a GPU, as far as a machine without one can tell."""

import logging
import warnings

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from torch.utils.data._utils.pin_memory import pin_memory
from toy_task import write_config

from mmdet.checkpoints.plain import to_plain
from mmdet.config.load import load_config
from mmdet.engine import launch, saving
from mmdet.engine.runner import build_runner
from mmdet.engine.seeding import set_seed
from mmdet.registry import DATASETS, TRANSFORMS

VARIABLES = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'LOCAL_WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT', 'GLOO_SOCKET_IFNAME')


@pytest.fixture
def two_gpus(monkeypatch) -> list:
    """torch says that there are two; the list is filled with what is asked of them."""
    calls = []
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(torch.cuda, 'set_device', lambda number: calls.append(('set_device', number)))
    monkeypatch.setattr(torch.distributed, 'init_process_group', lambda *a, **k: calls.append(('join', *a)))
    return calls


def test_each_process_takes_its_gpu_before_it_joins(two_gpus, monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, '')  # undone after the test
        monkeypatch.delenv(name)
    for name, value in zip(VARIABLES, ('1', '2', '1', '2', '127.0.0.1', '29500')):
        monkeypatch.setenv(name, value)
    launch.join_processes('pytorch')
    assert two_gpus == [('set_device', 1), ('join', 'nccl')]
    # for the CPU group beside it, in a container that does not know its own name
    assert launch.os.environ['GLOO_SOCKET_IFNAME'] == 'lo'


def test_a_checkpoint_is_read_on_the_host_whatever_device_resumes(tmp_path):
    history = HistoryBuffer(np.arange(3.0), np.ones(3))
    held = dict(state_dict=dict(w=torch.ones(2)), message_hub=to_plain(dict(loss=history)))
    torch.save(held, tmp_path / 'x.pth')
    saving.install()
    found = CheckpointLoader.load_checkpoint(str(tmp_path / 'x.pth'), map_location='meta')  # mmengine asks for 'cuda'
    assert found['state_dict']['w'].tolist() == [1, 1]
    assert found['message_hub']['loss'].data[0].tolist() == [0, 1, 2]


class Built:
    """Stands for a Runner, which would wake the GPU."""

    def __init__(self, **parts):
        self.parts, self.logger = parts, logging.getLogger('built')


@pytest.mark.parametrize('gpu', [False, True])
def test_pictures_go_through_pinned_memory(tmp_path, monkeypatch, gpu):
    cfg = load_config(write_config(tmp_path))
    cfg.work_dir = str(tmp_path)
    set_seed(cfg, seed=0, deterministic=False, resumed=None)
    cfg.val_dataloader.pin_memory = False
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpu)
    monkeypatch.setattr('mmdet.engine.runner._Runner', Built)
    parts = build_runner(cfg).parts
    assert parts['train_dataloader'].get('pin_memory', False) == gpu and not parts['val_dataloader']['pin_memory']
    with warnings.catch_warnings(record=True) as seen:
        torch.cuda.amp.GradScaler(enabled=False)  # mmengine's AmpOptimWrapper calls it by this name
    assert seen == []


def test_the_batch_survives_pinning(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, 'pin_memory', lambda self, *a: pinned.append(self.dtype) or self.clone())
    item = DATASETS.build(dict(type='ToyDataset', length=2))[0]
    sample = TRANSFORMS.build(dict(type='PackDetInputs'))(dict(img=np.zeros((4, 5, 3), np.uint8)))['data_samples']
    batch = pin_memory(pseudo_collate([item, dict(item, data_samples=sample)]))
    assert len(batch['inputs']) == 2 and batch['data_samples'][1] is sample
    assert pinned == [item['inputs'].dtype] * 2
