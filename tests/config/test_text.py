"""The text of a config is data: what mmdetection writes is read, and nothing else."""

import pytest
from mmengine.config import Config

from mmdet.config.errors import UserError
from mmdet.config.load import load_config, load_text
from mmdet.config.text import read_text
from mmdet.registry import MODELS


def test_what_python_would_make_of_it():
    text = """
'''A docstring.'''
root = 'data/'  # a variable
scales = [(1333, 640), (1333, 800)]
head = dict(type='X', stds=[0.1] * 4, lr=-1e-3, ratio=1.0 / 3, none=None, flag=True, deep={'a': {1, 2}, 3: ()})
model = dict(head, file=root + 'a.json', heads=[head, dict(**head, more=2 * 3 - 1)])
a = b = 7 // 2
"""
    text = text.replace('dict(head, ', 'dict(**head, ')
    names: dict = {}
    exec(text, names)
    del names['__builtins__'], names['__doc__']
    assert read_text(text, 'x') == names


def test_a_written_config_comes_back():
    cfg = load_config('configs/cbn/mask_rcnn_r50_fpn_cbn_buffer3_burnin8_1x.py')
    assert load_text(cfg.pretty_text, 'x').to_dict() == cfg.to_dict()


def test_files_behind_one_another(tmp_path):
    """mmcv wrote each file's name before its text, bases first; a child changes what its base says."""
    (tmp_path / 'base.py').write_text("model = dict(type='A', neck=dict(a=1, b=2), norm=dict(x=1))\nlr = 1\n")
    (tmp_path / 'child.py').write_text(
        "_base_ = './base.py'\nmodel = dict(neck=dict(b=3), norm=dict(_delete_=True, y=2))\n"
    )
    text = '\n'.join(f'/some where/{name}\n{(tmp_path / name).read_text()}' for name in ('base.py', 'child.py'))
    text = text.replace('/some where/', '/somewhere/')
    assert read_text(text, 'x') == Config.fromfile(tmp_path / 'child.py').to_dict()


@pytest.mark.parametrize(
    'text, expected',
    [
        ('import os', "line 1: 'import os' is not an assignment"),
        ("a = 1\nb = __import__('os').system('true')", 'line 2: '),
        ("a = open('/etc/passwd')", 'is more than data; the text of a config runs no code'),
        ("a = f'{1}'", 'is more than data'),
        ('a = [x for x in (1, 2)]', 'is more than data'),
        ('a = missing', "'missing' is more than data"),
        ('a = (1).__class__', 'is more than data'),
        ('a = dict([(1, 2)])', 'is more than data'),
        ('a = 2 ** 9', 'is more than data'),
        ("a.b = 'x'", 'is not an assignment'),
        ("a = 'x' * 10 ** 9", 'is more than data'),
        ("a = 'x' * 1000000000", 'a value of more than 200,000 items'),
        ('a = [0] * 1000\nb = a * 1000', 'a value of more than 200,000 items'),
        ('a = [0, 0]\n' + 'a = [a, a]\n' * 60, 'a value of more than 200,000 items'),
        ("a = '" + 'x' * 1000 + "'\n" + 'a = a + a\n' * 40, 'a value of more than 200,000 items'),
        ('a = 9\n' + 'a = a * a\n' * 60, 'a value of more than 200,000 items'),
        ('a = 1 / 0', 'ZeroDivisionError'),
        ("a = 'x' - 1", 'TypeError'),
        ('a = (', 'is not the text of a config: line 1'),
        ('a = ' + '[' * 150 + ']' * 150, 'too deep'),
        ('a = ' + '-' * 100_000 + '1', 'x'),
        ("custom_imports = dict(imports=['os'])", 'custom_imports: x runs no code'),
        ('a = 1\n' * 600_000, 'too many for a config'),
    ],
)
def test_nothing_else_is_read(text, expected):
    with pytest.raises(UserError) as caught:
        read_text(text, 'x')
    assert str(caught.value).startswith('x') or str(caught.value).startswith('custom_imports')
    assert expected in str(caught.value) and '\n' not in str(caught.value)


def test_types_are_not_imported():
    cfg = load_text("model = dict(type='subprocess.Popen', args=['true'])", 'x')
    with pytest.raises(KeyError, match='subprocess.Popen is not in the'):
        MODELS.build(cfg.model)
