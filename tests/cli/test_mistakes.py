"""What a person gets to read: a traceback for a bug in code of their own, one line for a mistake in a config."""

import subprocess
import sys
from pathlib import Path

import pytest
from toy_task import CONFIG, ENVIRONMENT, write_config

ROOT = Path(__file__).resolve().parents[2]
HEAD = """
from mmdet.registry import HOOKS, MODELS, METRICS
from mmengine.hooks import Hook
from toy_task import ToyDetector, ToyHead, ToyDataset, ToyMetric


@MODELS.register_module()
class MyDetector(ToyDetector):
    def forward(self, inputs, data_samples=None, mode='tensor'):
        height, width = inputs[0].shape{mark}
        return super().forward(inputs, data_samples, mode)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A config of the toy task whose detector stands in a file beside it, and another working folder."""
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs' / 'my_head.py').write_text(HEAD)
    text = CONFIG.replace("'toy_task'", "'my_head'").replace('ToyDetector', 'MyDetector')
    write_config(tmp_path / 'configs', base=text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(*words: str) -> tuple[int, str]:
    command = [sys.executable, str(ROOT / 'tools' / 'train.py'), *words]
    done = subprocess.run(command, capture_output=True, text=True, env={**ENVIRONMENT, 'PYTHONWARNINGS': 'ignore'})
    return done.returncode, done.stderr


@pytest.mark.parametrize('gpus', ['1', pytest.param('2', marks=pytest.mark.slow)])
def test_a_bug_in_a_users_head_shows_file_and_line(folder, gpus):
    path = folder / 'configs' / 'my_head.py'
    path.write_text(HEAD.replace('{mark}', ''))
    line = next(i for i, text in enumerate(path.read_text().splitlines(), 1) if 'height, width' in text)
    status, err = train('configs/toy.py', '--gpus', gpus)
    assert status == 1 and err.count('Traceback') == 1
    assert f'File "{path}", line {line}, in forward' in err and 'height, width = inputs[0].shape' in err
    assert err.splitlines()[-1] == 'error: not enough values to unpack (expected 2, got 1)'


def test_a_bug_met_while_the_file_is_imported_shows_file_and_line(folder):
    path = folder / 'configs' / 'my_head.py'
    path.write_text(HEAD.replace('MODELS, METRICS', 'MODELS, METRICS, HOOKZ').replace('{mark}', ''))
    status, err = train('configs/toy.py')
    assert status == 1 and f'File "{path}", line 2, in <module>' in err
    assert err.splitlines()[-1].startswith("error: cannot import name 'HOOKZ'")


MISTAKES = {
    "type='MyDetector'": [
        ("type='MyDetektor'", "unknown type 'MyDetektor' at model.type. Did you mean MyDetector?"),
        ("type='MyDetector', widht=4", "MyDetector: the config gives an unknown option 'widht'. Did you mean width?"),
        ("type='MyDetector', head=dict(type='ToyHed')",
         "unknown type 'ToyHed' at model.head.type. Did you mean ToyHead?"),
    ],
    "dict(type='MyDetector')": [
        ("dict(type='MyDetector', head=dict(typ='ToyHead'))",
         'a part of the config inside MyDetector has no type; its keys are typ'),
        ("dict(type='MyDetector', head='ToyHead')",
         "a part of the config inside MyDetector is 'ToyHead'; dict(type=...) is needed"),
    ],
    "'LoggerHook', interval=1": [
        ("'LoggerHook', intervall=1", "LoggerHook: the config gives an unknown option 'intervall'. Did you mean inter"),
    ],
    'max_epochs=2': [('max_epoch=2', "EpochLoop: the config gives an unknown option 'max_epoch'. Did you mean max_ep")],
    'optim_wrapper =': [('optim_wraper =', "unknown top-level key 'optim_wraper'. Did you mean optim_wrapper?")],
    'lr=0.1': [('lr=0.1.2', 'toy8.py line')],
    "['my_head']": [("['my_haed']", "custom_imports: there is no module 'my_haed'")],
    'shuffle=True': [('shufle=True', "DefaultSampler: the config gives an unknown option 'shufle'. Did you mean shuf")],
}  # fmt: skip


def test_a_mistake_in_a_config_is_one_line(folder):
    """All in one process, which takes seconds to start."""
    text = (folder / 'configs' / 'toy.py').read_text()
    (folder / 'configs' / 'my_head.py').write_text(HEAD.replace('{mark}', '*2'))
    expected = []
    for old, cases in MISTAKES.items():
        for new, message in cases:
            assert text.count(old) >= 1
            write_config(folder / 'configs', f'toy{len(expected)}.py', base=text.replace(old, new))
            expected.append(message)
    code = """
import sys
from mmdet.cli.train import main
from mmdet.config.errors import run_main
for number in range(int(sys.argv[1])):
    try:
        run_main(lambda: main([f'configs/toy{number}.py']))
    except SystemExit as stop:
        print(stop.code)
"""
    command = [sys.executable, '-c', code, str(len(expected))]
    done = subprocess.run(command, capture_output=True, text=True, env={**ENVIRONMENT, 'PYTHONWARNINGS': 'ignore'})
    lines = done.stderr.splitlines()
    assert [line for line in done.stdout.splitlines() if line.isdigit()] == ['2'] * len(expected), done.stderr
    for message, line in zip(expected, lines, strict=True):
        assert line.startswith('error: ') and message in line
