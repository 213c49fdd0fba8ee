"""Recipes by their names."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mmdet.config import shipped
from mmdet.config.errors import UserError
from mmdet.config.load import load_config
from mmdet.config.shipped import find_config, shipped_names

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / 'configs' / 'faster_rcnn' / 'faster_rcnn_r50_fpn_1x.py'


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    'name',
    [
        'faster_rcnn/faster_rcnn_r50_fpn_1x',
        'faster_rcnn/faster_rcnn_r50_fpn_1x.py',
        'configs/faster_rcnn/faster_rcnn_r50_fpn_1x.py',
        './configs/faster_rcnn/faster_rcnn_r50_fpn_1x.py',
        'mmdet::faster_rcnn/faster_rcnn_r50_fpn_1x.py',
        'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',  # mmdetection 3's
    ],
)
def test_names(name):
    assert find_config(name) == str(RECIPE)


def test_every_recipe_has_a_name():
    names = shipped_names()
    assert 'cbn/mask_rcnn_r50_fpn_cbn_buffer3_burnin8_1x' in names and len(names) > 30
    assert all(Path(find_config(name)).is_file() for name in names)


def test_a_file_of_ones_own_comes_first(tmp_path):
    (tmp_path / 'cbn').mkdir()
    (tmp_path / 'cbn' / 'faster_rcnn_r50_fpn_1x.py').write_text('x = 1')
    assert find_config('cbn/faster_rcnn_r50_fpn_1x.py') == 'cbn/faster_rcnn_r50_fpn_1x.py'


def test_a_base_of_the_package(tmp_path):
    (tmp_path / 'mine.py').write_text("_base_ = ['mmdet::_base_/models/faster-rcnn_r50_fpn.py', 'more.py']\n"
                                      'model = dict(backbone=dict(depth=101))\n')  # fmt: skip
    (tmp_path / 'more.py').write_text("_base_ = 'mmdet::_base_/schedules/schedule_1x.py'\n")
    cfg = load_config('mine.py')
    assert cfg.model.backbone == dict(load_config(str(RECIPE)).model.backbone, depth=101)
    assert cfg.train_cfg.max_epochs == 12


def test_an_unknown_name_and_an_unknown_base(tmp_path):
    with pytest.raises(UserError, match='Did you mean cbn/faster_rcnn_r50_fpn_gn_1x?'):
        load_config('cbn/faster_rcnn_r50_fpn_gm_1x.py')
    (tmp_path / 'mine.py').write_text("_base_ = 'mmdet::_base_/models/faster_rcnn_r50_fpnn.py'\n")
    with pytest.raises(UserError, match='a _base_ of .*mine.py.*Did you mean _base_/models/faster_rcnn_r50_fpn?'):
        load_config('mine.py')


def test_inside_an_installed_package(tmp_path, monkeypatch):
    """Where configs/ lies in the package, as setup.py puts it there, that is taken."""
    shutil.copytree(ROOT / 'configs' / 'rpn', tmp_path / 'mmdet' / 'configs' / 'rpn')
    monkeypatch.setattr(shipped, '_PACKAGE', tmp_path / 'mmdet')
    shipped.shipped_folder.cache_clear()
    try:
        assert shipped_names() == ['rpn/rpn_r50_fpn_1x']
        assert find_config('rpn/rpn_r50_fpn_1x') == str(tmp_path / 'mmdet' / 'configs' / 'rpn' / 'rpn_r50_fpn_1x.py')
    finally:
        shipped.shipped_folder.cache_clear()


@pytest.mark.parametrize('room', ['mmdet.utils', 'mmdet.datasets'])
def test_a_script_of_ones_own_finds_them(tmp_path, room):
    """One that reads its config by mmengine, after an import of this package."""
    (tmp_path / 'mine.py').write_text("_base_ = 'mmdet::cbn/mask_rcnn_r50_fpn_1x.py'\n")
    code = f"import {room}; from mmengine.config import Config; print(Config.fromfile('mine.py').model.type)"
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == 'MaskRCNN\n', done.stderr


@pytest.mark.parametrize('room', ['registry', 'visualization', 'utils'])
def test_a_script_that_imports_any_room_finds_bases(tmp_path, room):
    (tmp_path / 'mine.py').write_text("_base_ = 'mmdet::cbn/mask_rcnn_r50_fpn_1x.py'\n")
    code = f'import mmdet.{room}; from mmengine.config import Config; print(Config.fromfile("mine.py").model.type)'
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True,
                          env=dict(os.environ, PYTHONPATH=str(ROOT)))  # fmt: skip
    assert done.stdout == 'MaskRCNN\n', done.stderr
