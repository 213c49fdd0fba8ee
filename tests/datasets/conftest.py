"""The tools, called on a small data set as a person calls them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_set import CLASSES, CONFIG


@pytest.fixture(scope='session')
def weights(tmp_path_factory) -> Path:
    """An untrained checkpoint of the config."""
    from mmdet.apis import init_detector

    folder = tmp_path_factory.mktemp('weights')
    (folder / 'config.py').write_text(CONFIG)
    torch.manual_seed(0)
    model = init_detector(folder / 'config.py', device='cpu')
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=CLASSES))), folder / 'x.pth')
    return folder / 'x.pth'


@pytest.fixture
def call(tmp_path, monkeypatch, capsys, run_tool, on_the_cpu) -> Callable:
    """``call('train.py', 'config.py', ...)`` in a folder with config.py; the tool's output and errors."""
    monkeypatch.chdir(tmp_path)
    Path('config.py').write_text(CONFIG)

    def call(tool: str, *arguments, status: int = 0) -> tuple[str, str]:
        capsys.readouterr()
        left, out, err = run_tool(tool, *arguments)
        assert left == status, out + err
        return out, err

    return call


@pytest.fixture
def refused(call) -> Callable:
    """``refused('train.py', 'config.py')``: the one line with which a tool refuses, before any training."""

    def refused(tool: str, *arguments) -> str:
        out, err = call(tool, *arguments, status=2)
        assert err.startswith('error: ') and err.count('\n') == 1 and 'Epoch(train)' not in out, out + err
        return err

    return refused
