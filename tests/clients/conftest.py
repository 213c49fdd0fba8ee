"""What the client programs find: a config file, a checkpoint, images with annotations, in the working folder."""

import os
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import factories
import pytest

CLIENTS = Path(__file__).parent


@pytest.fixture(scope='session')
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('client')
    factories.write_detector(folder)
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
