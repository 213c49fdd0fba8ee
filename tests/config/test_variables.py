"""A variable of a config file, changed in a file that builds on it or by --cfg-options, reaches the same places."""

from pathlib import Path

import pytest

from mmdet.config.load import load_config

ROOT = Path(__file__).resolve().parents[2]
BASE = """
data_root = 'data/coco/'
norm_cfg = dict(type='GN', num_groups=32)
train_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackDetInputs')]
max_epochs, image_size, schedule = 12, (64, 64), None
model = dict(type='RPN', backbone=dict(type='ResNet', norm_cfg=dict(type='BN')),
             neck=dict(type='FPN', norm_cfg=norm_cfg), heads=[dict(norm_cfg=norm_cfg)])
train_dataloader = dict(dataset=dict(type='CocoDataset', data_root=data_root, pipeline=train_pipeline))
val_evaluator = dict(type='CocoMetric', ann_file=data_root + 'annotations/val.json')
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [dict(type='ConstantLR', end=max_epochs)]
visualizer = dict(name=f'{image_size[0]}')
"""
# changes of a variable, and (key of) the parts of the resolved config that hold the new value
CHANGES = [
    ("norm_cfg = dict(num_groups=8)", {'norm_cfg.num_groups': 8}),
    ("norm_cfg = dict(_delete_=True, type='SyncBN')", {'norm_cfg': dict(_delete_=True, type='SyncBN')}),
    ("train_pipeline = [dict(type='LoadImageFromFile')]", {'train_pipeline': [dict(type='LoadImageFromFile')]}),
    ("train_pipeline = [dict(type='PackDetInputs'), 1]\ntrain_pipeline.pop()",
     {'train_pipeline': [dict(type='PackDetInputs')]}),
    ("data_root = '/elsewhere'", {'data_root': '/elsewhere'}),
]


@pytest.fixture
def resolved(tmp_path, run_tool):
    """resolved(text of a child): what tools/print_config.py prints of it, as a dict, and what it says."""
    (tmp_path / 'base.py').write_text(BASE)

    def run(text: str, *words, name: str = 'child.py', base: str = 'base.py') -> tuple[dict, str]:
        (tmp_path / name).write_text(f"_base_ = '{base}'\n{text}\n" if name.endswith('.py') else text)
        status, out, err = run_tool('print_config.py', tmp_path / name, *words)
        assert status == 0, err
        lines = out.splitlines(keepends=True)
        said = [line for line in lines if ' - mmengine - ' in line]
        found = {}
        exec(''.join(line for line in lines if line not in said), found)
        found.pop('__builtins__')
        return found, ''.join(said) + err

    return run


@pytest.mark.parametrize('text, options', CHANGES)
def test_files_and_options_reach_the_same_places(resolved, tmp_path, text, options):
    found, said = resolved(text)
    assert found == load_config(tmp_path / 'base.py', options).to_dict() and not said
    name = text.split(' = ')[0]
    assert found[name] != load_config(tmp_path / 'base.py').to_dict()[name]
    if name == 'norm_cfg':
        assert found['model']['neck']['norm_cfg'] == found['model']['heads'][0]['norm_cfg'] == found['norm_cfg']
        assert found['model']['backbone']['norm_cfg'] == dict(type='BN')
    elif name == 'train_pipeline':
        assert found['train_dataloader']['dataset']['pipeline'] == found['train_pipeline']
    else:
        assert found['val_evaluator']['ann_file'] == '/elsewhere/annotations/val.json'


def test_through_a_file_between(resolved, tmp_path):
    (tmp_path / 'middle.py').write_text("_base_ = 'base.py'\nmodel = dict(extra=dict(norm_cfg=dict(type='LN')))\n")
    found, _ = resolved('norm_cfg = dict(num_groups=8)', base='middle.py')
    assert found['model']['heads'] == [dict(norm_cfg=dict(type='GN', num_groups=8))]
    assert found['model']['extra'] == dict(norm_cfg=dict(type='LN'))


def test_yaml_on_yaml(resolved, tmp_path):
    (tmp_path / 'base.yaml').write_text('norm_cfg: &norm {type: GN, num_groups: 32}\n'
                                        'model: {type: RPN, neck: {type: FPN, norm_cfg: *norm}}\n')
    found, _ = resolved('_base_: base.yaml\nnorm_cfg: {num_groups: 8}\n', name='child.yaml')
    assert found['model']['neck']['norm_cfg'] == dict(type='GN', num_groups=8)


def test_what_the_file_says_itself_wins(resolved):
    """As in mmdetection: a file that uses its variable says where the value belongs; what it names, it keeps."""
    found, said = resolved("norm_cfg = dict(num_groups=8)\nmodel = dict(neck=dict(norm_cfg=norm_cfg))")
    assert found['model']['neck']['norm_cfg']['num_groups'] == 8
    assert found['model']['heads'][0]['norm_cfg']['num_groups'] == 32 and not said
    found, _ = resolved("norm_cfg = dict(num_groups=8)\nmodel = dict(neck=dict(norm_cfg=dict(num_groups=4)))")
    assert [found['model']['neck']['norm_cfg'], found['model']['heads'][0]['norm_cfg']] == [
        dict(type='GN', num_groups=4), dict(type='GN', num_groups=8)]  # fmt: skip


@pytest.mark.parametrize('text, said', [
    ('max_epochs = 24', 'max_epochs=24 reaches nothing, its value of before has been used: set train_cfg.max_epochs'),
    ('image_size = (32, 32)', 'image_size=(32, 32) reaches nothing, its value of before has been used: set what was'),
    ('max_epochs = 24\ntrain_cfg = dict(max_epochs=max_epochs)', ''),
    ('max_epochs = 24\ntrain_cfg = dict(max_epochs=24)', ''),
    ('max_epochs = 12', ''),
    ("schedule = '1x'", ''),  # of no use before
    ('my_variable = 3', ''),
])  # fmt: skip
def test_what_reaches_nothing_is_named(resolved, text, said):
    found, lines = resolved(text)
    assert (said in lines and lines.count('\n') == 1) if said else not lines
    assert found['param_scheduler'] == [dict(type='ConstantLR', end=12)]


def test_options_that_reach_nothing_are_named(resolved):
    _, lines = resolved('', '--cfg-options', 'image_size=(32,32)')
    assert '--cfg-options image_size: image_size is a variable of the config file, and its value is nowhere' in lines


@pytest.mark.parametrize('statement, used', [
    ('a = b', {'b'}), ('a = dict(b=c)', {'c'}), ('a.append(b)', {'b'}), ("a['k'] = a['j'] + 1", set()),
    ('a += b', {'b'}), ('for i in a:\n  b.append(c)', {'a', 'b', 'c'}), ('def f():\n  return a', {'a'}),
])  # fmt: skip
def test_what_a_file_uses(tmp_path, statement, used):
    from mmdet.config.variables import _used

    (tmp_path / 'x.py').write_text(statement)
    assert _used(str(tmp_path / 'x.py')) - {'dict'} == used


@pytest.mark.parametrize('change', ['', 'norm_cfg = dict(num_groups=16)'])
def test_a_recipe_of_the_method(tmp_path, change):
    """The recipe with GroupNorm uses its norm_cfg itself; who builds on it edits it in one place."""
    path = tmp_path / 'child.py'
    path.write_text(f"_base_ = '{ROOT / 'configs/cbn/mask_rcnn_r50_fpn_gn_1x.py'}'\n{change}\n")
    model = load_config(path).model
    groups = [part.norm_cfg.num_groups for part in (model.neck, model.roi_head.bbox_head, model.roi_head.mask_head)]
    assert groups == [16 if change else 32] * 3
