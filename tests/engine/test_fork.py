"""The engine's tests with onedl-mmengine, mmengine's maintained fork of the same import name."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

FORK = 'onedl-mmengine==0.10.12'
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def python(tmp_path_factory) -> str:
    """An interpreter that has the fork, and everything else from this environment."""
    folder = tmp_path_factory.mktemp('fork')
    venv.create(folder, with_pip=False, symlinks=True)
    python = str(folder / 'bin' / 'python')
    install = [sys.executable, '-m', 'pip', '--python', python, 'install', '--quiet', '--no-deps', FORK]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f'pip cannot install {FORK}: {done.stderr.strip().splitlines()[-1]}')
    inner = next(folder.glob('lib/python*/site-packages'))
    (inner / 'outer.pth').write_text(sysconfig.get_path('purelib') + '\n')  # after the fork on the path
    return python


@pytest.mark.slow
def test_the_engines_tests_pass_with_the_fork(python):
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    version = 'import mmengine.runner.checkpoint as c; print(mmengine.__version__, hasattr(c, "_safe_torch_load"))'
    ask = [python, '-c', f'import mmengine; {version}']
    shown = subprocess.run(ask, env=environment, capture_output=True, text=True)
    assert shown.stdout.split() == [FORK.split('==')[1], 'True'], shown.stderr
    tests = [python, '-m', 'pytest', '-q', '-x', '-m', 'not slow', '-p', 'no:cacheprovider', 'tests/engine']
    done = subprocess.run(tests, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert ' passed' in done.stdout.splitlines()[-1]
