"""Configs: every mistake ends in one line that names the file, the place and the nearest name."""

import sys

import pytest
from mmengine.config import Config
from toy_task import CONFIG, write_config

from mmdet.config.errors import UserError
from mmdet.config.load import changed_keys, check_types, load_config


def message(call, *args) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)
    text = str(caught.value)
    assert '\n' not in text
    return text


def test_a_config_that_imports_os_is_no_lazy_config(tmp_path):
    path = write_config(tmp_path, text="import os\nfrom math import pi\nwork_dir = os.path.join('a', 'b')\n")
    cfg = load_config(path)
    assert cfg.work_dir == 'a/b' and cfg.default_scope == 'mmdet'


def test_syntax_error_names_file_and_line(tmp_path):
    base = write_config(tmp_path, 'base.py', 'broken = dict(a=1\n')
    child = write_config(tmp_path, 'child.py', base="_base_ = './base.py'\n")
    text = message(load_config, child)
    assert str(base) in text and 'line' in text and 'never closed' in text


def test_error_while_running_names_file_and_line(tmp_path):
    path = write_config(tmp_path, base='a = 1\nb = undefined\n')
    assert message(load_config, path) == f"{path} line 2: NameError: name 'undefined' is not defined"


def test_custom_imports_are_found_beside_the_config_and_in_the_working_folder(tmp_path, monkeypatch):
    for name, folder in dict(beside_config=tmp_path / 'configs', in_cwd=tmp_path / 'cwd').items():
        folder.mkdir()
        (folder / f'{name}.py').write_text(f'import {name}_helper\nwhere = __file__\n')
        (folder / f'{name}_helper.py').write_text('')
    elsewhere = tmp_path / 'elsewhere'
    elsewhere.mkdir()
    (elsewhere / 'beside_config.py').write_text('raise RuntimeError')
    monkeypatch.setattr(sys, 'path', [str(elsewhere), *sys.path])
    monkeypatch.chdir(tmp_path / 'cwd')
    text = "custom_imports = dict(imports=['beside_config', 'in_cwd'])\n"
    load_config(write_config(tmp_path / 'configs', base=text))
    assert sys.modules['beside_config'].where == str(tmp_path / 'configs' / 'beside_config.py')
    assert sys.modules['in_cwd'].where == str(tmp_path / 'cwd' / 'in_cwd.py')
    # a second file of that name would silently be the first
    (tmp_path / 'cwd' / 'beside_config.py').write_text('')
    path = write_config(tmp_path / 'cwd', base=text)
    assert 'has been imported under that name; rename one of them' in message(load_config, path)


def test_custom_imports_that_are_not_there(tmp_path):
    path = write_config(tmp_path, base="custom_imports = dict(imports=['not_there'])\n")
    text = message(load_config, path)
    assert f"toy.py: custom_imports: there is no module 'not_there' in {tmp_path} or" in text and 'PYTHONPATH' in text
    may_fail = "custom_imports = dict(imports=['not_there'], allow_failed_imports=True)\n"
    load_config(write_config(tmp_path, base=may_fail))
    path = write_config(tmp_path, base="custom_imports = ['not_there']\n")
    assert "must be dict(imports=['my_module'])" in message(load_config, path)


def test_an_error_inside_a_custom_module_is_left_as_it_is(tmp_path):
    (tmp_path / 'broken.py').write_text('import torch\nx = tourch\n')
    (tmp_path / 'lacks.py').write_text('import not_installed\n')
    with pytest.raises(NameError):
        load_config(write_config(tmp_path, base="custom_imports = dict(imports=['broken'])\n"))
    with pytest.raises(ModuleNotFoundError, match='not_installed'):
        load_config(write_config(tmp_path, base="custom_imports = dict(imports='lacks')\n"))


def test_keys_of_none(tmp_path):
    path = write_config(tmp_path, text='model = dict(type="ToyDetector", data_preprocessor=None)\n')
    text = message(load_config, path, {'model.data_preprocessor.type': 'X'})
    assert text.endswith('give it whole: "model.data_preprocessor={\'type\': ...}"')
    whole = {'model.data_preprocessor': dict(type='X'), 'auto_scale_lr': dict(base_batch_size=8)}
    cfg = load_config(path, whole)
    assert cfg.model.data_preprocessor == dict(type='X') and cfg.auto_scale_lr == dict(base_batch_size=8)


def test_missing_files(tmp_path):
    write_config(tmp_path, 'mask_rcnn.py')
    assert 'Did you mean mask_rcnn.py?' in message(load_config, tmp_path / 'mask_rcn.py')
    child = write_config(tmp_path, 'child.py', base="_base_ = ['./mask_rcn.py']\n")
    assert 'mask_rcn.py not found (a _base_ of' in message(load_config, child)
    assert 'is a folder' in message(load_config, tmp_path)


def test_bases_of_other_packages_lazy_bases_and_circles(tmp_path):
    path = write_config(tmp_path, base="_base_ = 'mmpose::faster_rcnn/x.py'\n")
    assert 'relative path' in message(load_config, path)
    path = write_config(tmp_path, base='with read_base():\n    from .a import *\n')
    assert "_base_ = ['relative/path.py']" in message(load_config, path)
    path = write_config(tmp_path, base="_base_ = './toy.py'\n")
    assert 'circle' in message(load_config, path)
    for wrong in ('5', '[5]', '{}'):
        path = write_config(tmp_path, base=f'_base_ = {wrong}\n')
        assert message(load_config, path) == f'{path} line 1: _base_ must be a path or a list of paths'


def test_another_encoding_names_the_file(tmp_path):
    path = tmp_path / 'latin.py'
    path.write_bytes('# café\nx = 1\n'.encode('latin1'))
    assert message(load_config, path) == f'{path} is not a text in UTF-8: invalid continuation byte at byte 5'


def test_misspelt_top_level_key(tmp_path):
    path = write_config(tmp_path, text='optim_wraper = dict()\n')
    assert message(load_config, path) == f"{path}: unknown top-level key 'optim_wraper'. Did you mean optim_wrapper?"


def test_keys_of_mmdetection_2(tmp_path):
    path = write_config(tmp_path, text="lr_config = dict(policy='step')\n")
    assert "'lr_config' is of mmdetection 2.x" in message(load_config, path) and 'has param_scheduler' in message(
        load_config, path)
    both = "data = dict(samples_per_gpu=2)\n"  # a whole config of theirs is translated, see test_legacy_configs.py
    assert 'train_dataloader, val_dataloader and test_dataloader instead' in message(
        load_config, write_config(tmp_path, text=both))
    assert "'optimizer' is of mm" in message(load_config, write_config(tmp_path, text="optimizer = dict(type='SGD')\n"))
    used = "optimizer = dict(type='SGD', lr=0.3)\noptim_wrapper['optimizer'] = optimizer\n"
    assert load_config(write_config(tmp_path, text=used)).optim_wrapper.optimizer.lr == 0.3


def test_own_variables_are_no_mistakes(tmp_path):
    text = 'train_pipeline_stage2 = []\nimage_size = (1024, 1024)\nlr = 0.1\nmy_classes = 3\n'
    assert load_config(write_config(tmp_path, text=text)).image_size == (1024, 1024)


def test_unknown_type_names_its_place_and_the_nearest(tmp_path):
    pytest.importorskip('mmdet.datasets')
    for old, new, place, nearest in [
        ("type='ToyDetector'", "type='ToyDetektor'", 'model.type', 'ToyDetector'),
        ("type='SGD'", "type='SGDD'", 'optim_wrapper.optimizer.type', 'SGD'),
        ("type='MultiStepLR'", "type='MultistepLR'", 'param_scheduler.1.type', 'MultiStepLR'),
        ("type='DefaultSampler', shuffle=True", "type='DefaultSamper'", 'train_dataloader.sampler.type',
         'DefaultSampler'),
        ("type='LoggerHook'", "type='LogerHook'", 'default_hooks.logger.type', 'LoggerHook'),
        ("type='ToyMetric'", "type='CocoMetrik'", 'val_evaluator.type', 'CocoMetric'),
    ]:  # fmt: skip
        cfg = load_config(write_config(tmp_path, base=CONFIG.replace(old, new)))
        assert f'at {place}. Did you mean {nearest}' in message(check_types, cfg)
    check_types(load_config(write_config(tmp_path)))


def test_parts_without_a_type(tmp_path):
    for old, place, keys in [
        ("type='ToyDataset', length=5", 'val_dataloader.dataset', 'length'),
        ("type='SGD', ", 'optim_wrapper.optimizer', 'lr, momentum'),
        ("type='LinearLR', ", 'param_scheduler.0', 'start_factor, by_epoch, begin, end'),
    ]:
        cfg = load_config(write_config(tmp_path, base=CONFIG.replace(old, 'length=5' * ('length' in old))))
        assert message(check_types, cfg) == f'{place} has no type; its keys are {keys}'
    cfg = load_config(write_config(tmp_path, text="custom_hooks = ['EMAHook']\n"))
    assert message(check_types, cfg) == "custom_hooks.0='EMAHook': write it as dict(type='EMAHook')"
    cfg = load_config(write_config(tmp_path), dict(param_scheduler=3))
    assert message(check_types, cfg) == 'param_scheduler=3: write it as dict(type=...)'


@pytest.mark.parametrize('kind', [b'CBNHook', ['CBNHook'], 1, None, dict(type='CBNHook')])
def test_a_type_that_is_no_name(kind):
    cfg = Config(dict(custom_hooks=[dict(type=kind)]))
    assert message(check_types, cfg) == f'custom_hooks.0.type={kind!r}: the name of a type is needed'


@pytest.mark.parametrize(
    'key, value, expected',
    [
        ('modell.type', 'X', "the config has no key 'modell'. Did you mean model?"),
        ('wrk_dir', 'x', 'no such top-level key. Did you mean work_dir?'),
        ('optim_wrapper.optimiser.lr', 0.1, "optim_wrapper has no key 'optimiser'. Did you mean optimizer?"),
        ('train_cfg.max_epoch', 3, "train_cfg has no key 'max_epoch'. Did you mean max_epochs?"),
        ('param_scheduler.5.end', 3, 'param_scheduler is a list of 2'),
        ('model.type.name', 'x', "is 'ToyDetector', which has no keys"),
    ],
)
def test_options_without_a_place(tmp_path, key, value, expected):
    assert expected in message(load_config, write_config(tmp_path), {key: value})


def test_options_with_a_place(tmp_path):
    options = {'model.width': 8, 'train_dataloader.dataset.metainfo.classes': ['a'],
               'param_scheduler.1.gamma': 0.2, 'work_dir': 'w', 'load_from': 'x.pth',
               'randomness.seed': 3}  # fmt: skip
    cfg = load_config(write_config(tmp_path), options)
    assert cfg.train_dataloader.dataset.metainfo.classes == ['a']
    assert (cfg.model.width, cfg.param_scheduler[1].gamma, cfg.work_dir, cfg.randomness.seed) == (8, 0.2, 'w', 3)


def test_options_reach_the_copies_of_a_variable(tmp_path):
    text = """
data_root = 'data/coco/'
norm_cfg = dict(type='GN', num_groups=32)
max_epochs = 7
model['neck'] = dict(norm_cfg=norm_cfg)
train_dataloader['dataset'].update(data_root=data_root, ann_file=data_root + 'annotations/a.json')
train_cfg['max_epochs'] = max_epochs
"""
    path = write_config(tmp_path, text=text)
    cfg = load_config(path, {'data_root': 'other', 'norm_cfg.num_groups': 8})
    assert cfg.train_dataloader.dataset.data_root == 'other'
    assert cfg.train_dataloader.dataset.ann_file == 'other/annotations/a.json'
    assert cfg.model.neck.norm_cfg == dict(type='GN', num_groups=8)
    assert 'set train_cfg.max_epochs instead' in message(load_config, path, {'max_epochs': 3})


def test_changed_keys():
    old = dict(a=dict(b=1, c=[1, 2]), work_dir='x', s=[dict(end=1)])
    new = dict(a=dict(b=2, c=(1, 2)), work_dir='y', s=[dict(end=2)])
    assert changed_keys(old, new, {'work_dir'}) == ['a.b', 's.0.end']
