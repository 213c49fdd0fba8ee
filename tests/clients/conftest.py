"""What the client programs find: a config file, a checkpoint, images with annotations, in the working folder."""

import os
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import factories
import pytest
import torch

from mmdet.apis import init_detector
from mmdet.config.load import load_config
from projects.demo.shapes import write_shapes

CLIENTS = Path(__file__).parent


@pytest.fixture(scope='session')
def made(tmp_path_factory) -> Path:
    """config.py, weights.pth of an untrained thin Mask R-CNN, and shapes/ of four classes."""
    folder = tmp_path_factory.mktemp('client')
    write_shapes(folder / 'shapes', train=4, val=2, size=96)
    cfg = load_config(factories.CONFIGS / 'demo' / 'mask_rcnn_r18_fpn_cbn_shapes.py')
    cfg.model = factories.small_cfg('mask_rcnn', width=16, num_classes=4, samples=16)
    cfg.model.neck.norm_cfg = dict(type='CBN', buffer_num=2)
    cfg.model.test_cfg.rpn.update(max_per_img=20)
    cfg.model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=5)
    cfg.train_cfg.update(max_epochs=1, val_interval=1)
    cfg.custom_hooks = []
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
    for key in ('data_root', 'train_pipeline', 'test_pipeline'):
        cfg.pop(key, None)
    text = cfg.pretty_text.replace('data/shapes/', 'shapes/').replace("data_root='data/shapes'", "data_root='shapes'")
    (folder / 'config.py').write_text(text)
    torch.manual_seed(0)
    model = init_detector(folder / 'config.py', device='cpu')
    torch.nn.init.constant_(model.roi_head.mask_head.conv_logits.bias, 9.0)  # masks that fill their boxes
    meta = dict(dataset_meta=dict(classes=('circle', 'square', 'triangle', 'star')))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), folder / 'weights.pth')
    return folder


@pytest.fixture
def program(made, tmp_path, monkeypatch, capsys, on_the_cpu) -> Callable:
    """``program('name', *arguments)``: what a program of this folder prints, run in a copy of that folder."""
    for path in made.iterdir():
        os.symlink(path, tmp_path / path.name)
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: str) -> str:
        shutil.copy(CLIENTS / f'{name}.py', tmp_path)  # custom_imports look beside the config
        monkeypatch.setattr(sys, 'argv', [f'{name}.py', *arguments])
        monkeypatch.syspath_prepend(str(tmp_path))
        capsys.readouterr()
        runpy.run_path(str(tmp_path / f'{name}.py'), run_name='__main__')
        return capsys.readouterr().out

    return run
