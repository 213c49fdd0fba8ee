"""The `mmdet` command: its verbs, its help, and what is imported for them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmdet.cli.command import call, verbs
from mmdet.config.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
VERBS = ('convert', 'init', 'check', 'browse', 'train', 'curves', 'test', 'predict', 'benchmark', 'config')


def python(*words, cwd: Path = ROOT, **environment) -> subprocess.CompletedProcess:
    env = {**os.environ, 'PYTHONPATH': str(ROOT), **environment}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=cwd, env=env)


def test_every_verb_has_its_line_in_the_help(capsys):
    assert [name for name in verbs() if name in VERBS] == list(VERBS)
    call(['--help'])
    printed = capsys.readouterr().out
    for name, text in verbs().items():
        assert f'  {name:13} {text}' in printed
    assert 'Exit status' in printed


def test_help_imports_nothing_that_takes_time():
    code = """
import sys
from mmdet.cli.command import call
call(['--help'])
print(sorted({'torch', 'mmengine', 'numpy', 'mmdet.cli.train'} & set(sys.modules)))
"""
    assert python('-c', code).stdout.splitlines()[-1] == '[]'


@pytest.mark.parametrize('verb', VERBS)
def test_help_of_a_verb(verb):
    done = python('-m', 'mmdet', verb, '--help')
    assert done.returncode == 0 and done.stdout.startswith(f'usage: mmdet {verb} ')
    assert f'\n  mmdet {verb} ' in done.stdout or verb == 'predict'  # an example
    assert 'Exit status: 0' in done.stdout


def test_a_new_verb_is_a_module(tmp_path, monkeypatch, capsys):
    text = '"""Look at norms.\n\nMore."""\n\n\ndef main(argv=None):\n    print(argv)\n'
    (tmp_path / 'norm_look.py').write_text(text)
    (tmp_path / 'helper.py').write_text('"""No verb."""\n')
    import mmdet.cli

    monkeypatch.setattr('mmdet.cli.command.__file__', str(tmp_path / 'command.py'))
    monkeypatch.setattr(mmdet.cli, '__path__', [str(tmp_path)])
    assert verbs() == {'norm-look': 'Look at norms.'}
    call(['norm-look', '--x', '1'])
    assert capsys.readouterr().out == "['--x', '1']\n"


def test_an_unknown_verb():
    with pytest.raises(UserError, match="no verb 'trian'. Did you mean train?"):
        call(['trian', 'x.py'])
    done = python('-m', 'mmdet', 'trian')
    assert done.returncode == 2 and done.stdout == '' and done.stderr.count('\n') == 1


def test_a_recipe_by_its_name_from_any_folder(tmp_path):
    done = python('-m', 'mmdet', 'config', 'cbn/faster_rcnn_r50_fpn_gn_1x', cwd=tmp_path)
    assert done.returncode == 0 and "type='GN'" in done.stdout, done.stderr


def test_processes_of_python_m(tmp_path):
    """Each is `python -m mmdet` again: as a file, the package's folder would be on its path, and hide modules."""
    code = """
import sys
from mmdet.engine import launch
launch.subprocess.Popen = lambda command, **options: sys.exit(' '.join(command[1:]))
sys.argv = [sys.argv[1], 'train', 'x.py', '--gpus', '2']
launch.spawn(2)
"""
    package = ROOT / 'mmdet' / '__main__.py'
    assert python('-c', code, str(package)).stderr == '-m mmdet train x.py --gpus 2\n'
    assert python('-c', code, '/usr/bin/mmdet').stderr == '/usr/bin/mmdet train x.py --gpus 2\n'


def test_what_cpus_run_fast_with_is_set_unless_it_is(monkeypatch):
    from argparse import Namespace

    from mmdet.cli.parser import start_processes

    monkeypatch.setenv('OMP_WAIT_POLICY', 'ACTIVE')
    monkeypatch.setenv('THP_MEM_ALLOC_ENABLE', '')
    monkeypatch.delenv('THP_MEM_ALLOC_ENABLE')
    start_processes(Namespace(local_rank=None, gpus=1, launcher='none'), lambda: None)
    assert (os.environ['OMP_WAIT_POLICY'], os.environ['THP_MEM_ALLOC_ENABLE']) == ('ACTIVE', '1')
