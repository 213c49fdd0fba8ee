"""What a person types after a tool's name."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mmdet.cli import predict, test
from mmdet.cli.parser import Parser, parse_value
from mmdet.config.errors import UserError
from mmdet.engine import launch

ROOT = Path(__file__).resolve().parents[2]


def options(*words):
    parser = Parser('A tool.')
    parser.add_config_arguments('a=1')
    parser.add_argument('--work-dir')
    return parser.parse_args(['config.py', *words])


def test_values_of_options():
    words = ['a=1', 'b=0.5', 'c=true', 'd=None', 'e=1333,800', 'f=[a,b]', "g=[{'type': 'X'}, 2]", "h={'k': (1, 2)}"]
    assert options('--cfg-options', *words, 'i=x=y').cfg_options == dict(
        a=1, b=0.5, c=True, d=None, e=[1333, 800], f=['a', 'b'], g=[{'type': 'X'}, 2], h={'k': (1, 2)}, i='x=y'
    )
    assert options('--cfg-options', 'a=1', '--cfg-options', 'b=2').cfg_options == dict(a=1, b=2)


def test_values_are_read_as_mmengine_reads_them():
    """Except that spaces inside a text stay."""
    from mmengine.config import DictAction

    texts = """1 -2.5 1e-3 inf TRUE False None none word '1' "ab" 1,2 a, [1,b] (1,2) [(a,1),[b]] [] () [a] x/y.json 007
               [1,a] a(b 1_000 (a)""".split()
    for text in texts:
        assert parse_value(text) == DictAction._parse_iterable(text), text
    assert parse_value('runs/a b') == 'runs/a b' and parse_value('[a b, c]') == ['a b', 'c']


def test_options_are_read_without_torch_and_mmengine():
    code = """
import sys
from mmdet.cli import parser, test, train
def spawn(gpus, check):
    sys.exit(f'{gpus} {sorted({"torch", "mmengine", "numpy"} & set(sys.modules))}')
parser.spawn = spawn
getattr(sys.modules[f'mmdet.cli.{sys.argv[1]}'], 'main')(sys.argv[2:])
"""
    for words in ('train c.py --gpus 2 --cfg-options a=[1,2]', 'test c.py x.pth --gpus 2'):
        done = subprocess.run([sys.executable, '-c', code, *words.split()], capture_output=True, text=True, cwd=ROOT)
        assert done.stderr == '2 []\n'


@pytest.mark.parametrize(
    'words, expected',
    [
        (['--work_dir', 'x'], 'unrecognized arguments: --work_dir x. Did you mean --work-dir?'),
        (['--show'], 'unrecognized arguments: --show. Images are drawn into files: --show-dir FOLDER'),
        (['--cfg-options'], 'argument --cfg-options: expected at least one argument'),
        (['--cfg-options', 'a'], '--cfg-options a: KEY=VALUE is needed'),
        (['--cfg-options', 'a=[1,2'], '--cfg-options a=[1,2: the brackets of [1,2 do not match'),
        (['--cfg-options', 'a={b: 1}'], '{b: 1} is not a Python value'),
    ],
)
def test_mistakes(words, expected):
    with pytest.raises(UserError) as caught:
        options(*words)
    assert expected in str(caught.value) and '\n' not in str(caught.value) and '--help' in str(caught.value)


@pytest.mark.parametrize(
    'verb, words, expected',
    [
        ('train', [], 'no annotation file data/coco/annotations/instances_train2017.json; check data_root'),
        ('train', ['train_cfg.max_epochs=0'], 'train_cfg.max_epochs=0'),
        ('test', ['x.pth'], 'checkpoint x.pth not found'),
        ('test', [__file__], 'no annotation file data/coco/annotations/instances_val2017.json; check data_root'),
    ],
)
def test_what_would_end_each_process_is_said_before_they_start(monkeypatch, tmp_path, verb, words, expected):
    def start(*args, **kwargs):
        raise AssertionError('a process was started')

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch.subprocess, 'Popen', start)
    config = str(ROOT / 'configs/faster_rcnn/faster_rcnn_r50_fpn_1x.py')
    options = ['--cfg-options', *words] if verb == 'train' and words else words
    main = importlib.import_module(f'mmdet.cli.{verb}').main
    with pytest.raises(UserError, match=re.escape(expected)):
        main([config, *options, '--gpus', '4'])


def test_only_local_annotation_files_of_the_known_kind_are_looked_for(tmp_path):
    from mmdet.datasets import CocoDataset

    cfg = dict(ann_file='a.json', data_root=str(tmp_path))
    with pytest.raises(UserError, match='no annotation file .*a.json; check data_root and ann_file'):
        CocoDataset.check_files(cfg)
    CocoDataset.check_files(dict(ann_file='s3://b/a.json'))
    CocoDataset.check_files(dict(cfg, backend_args=dict(backend='petrel')))

    class Own(CocoDataset):
        def load_data_list(self):
            return []

    Own.check_files(cfg)
    (tmp_path / 'a.json').write_text('{}')
    CocoDataset.check_files(cfg)


@pytest.mark.parametrize('words', ['C --gpus 2 K --eval bbox segm', '--gpus 2 C K --eval bbox segm',
                                   'C --eval bbox segm --gpus 2 K'])  # fmt: skip
def test_options_between_config_and_checkpoint(words):
    args = test.parse_args(words.split())
    assert (args.config, args.checkpoint, args.gpus, args.eval) == ('C', 'K', 2, ['bbox', 'segm'])
    assert predict.parse_args('C K a.jpg --amp b.jpg'.split()).images == ['a.jpg', 'b.jpg']
