"""Fixtures shared by all tests."""

import os
import random
import runpy
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger

ROOT = Path(__file__).resolve().parent.parent
_DATA = Path(os.environ.get('MMDET_TEST_DATA', ROOT.parent / 'shared' / 'data'))
_FIXTURES = _DATA.parent / 'fixtures'


def pytest_configure():
    torch.backends.cudnn.allow_tf32 = False  # convolutions on a GPU are then as exact as the tests expect
    if 'CUDA_ON_CPU' in os.environ:
        from cuda_on_cpu.build import load
        load()


def pytest_terminal_summary(terminalreporter):
    if 'CUDA_ON_CPU' in os.environ:
        terminalreporter.line(f'CUDA kernels on the CPU: {torch.ops.cuda_on_cpu.launches()} launches')


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker('cuda'):
            item.add_marker(pytest.mark.skip(reason='needs a CUDA device'))


@pytest.fixture(autouse=True)
def _same_numbers_each_time() -> None:
    """A test that draws random numbers draws the same ones alone and among others, today and tomorrow."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(params=['cpu', pytest.param('cuda', marks=pytest.mark.cuda)])
def device(request) -> str:
    return request.param


@pytest.fixture
def cuda_kernels(device) -> bool:
    """Whether CUDA kernels take the device's tensors: on a GPU, or on the CPU by tests/cuda_on_cpu."""
    return device == 'cuda' or 'CUDA_ON_CPU' in os.environ


@pytest.fixture
def on_the_cpu(monkeypatch) -> None:
    """What a Runner in this process trains, it trains on the CPU, also on a machine with a GPU."""
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr('mmengine.device.utils.DEVICE', 'cpu')


@pytest.fixture
def run_tool(monkeypatch, capsys) -> Callable:
    """``run_tool('train.py', ...)`` in this process: the tool's exit status, output and errors."""

    def run(name: str, *arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, 'argv', [name, *map(str, arguments)])
        monkeypatch.setattr(MMLogger, '_instance_dict', OrderedDict())  # an earlier one writes to another test's output
        try:
            runpy.run_path(str(ROOT / 'tools' / name), run_name='__main__')
            status = 0
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture(scope='session')
def real_data() -> Path:
    """Folder with coco_dev/, bccd/, nuclei_dsb2018/, photos/ (see MMDET_TEST_DATA)."""
    if not (_DATA / 'coco_dev').is_dir():
        pytest.skip(f'no real test data in {_DATA}; set MMDET_TEST_DATA')
    return _DATA


@pytest.fixture(scope='session')
def recorded() -> Path:
    """Folder with the arrays recorded from the method's reference layer."""
    if not _FIXTURES.is_dir():
        pytest.skip(f'no recorded numbers in {_FIXTURES}; set MMDET_TEST_DATA to the data folder beside it')
    return _FIXTURES


@pytest.fixture
def serve(monkeypatch) -> Iterator[Callable]:
    """``serve(folder)``: the http address of a folder, served by this process, and the paths asked for so far."""
    servers = []
    monkeypatch.setenv('no_proxy', '127.0.0.1')

    def start(folder: Path) -> tuple[str, list[str]]:
        asked: list[str] = []

        class Handler(SimpleHTTPRequestHandler):
            def log_request(self, *args) -> None:
                asked.append(self.path)

            def log_message(self, *args) -> None:
                """To nobody."""

        server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Handler, directory=str(folder)))
        Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f'http://127.0.0.1:{server.server_port}', asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
