"""A mistake ends in one line and status 2; anything else keeps its traceback and ends with status 1."""

import ast
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mmdet.config import errors
from mmdet.config.errors import Interrupted, MissingFile, UserError, run_main, suggest
from mmdet.registry import MODELS, PARAM_SCHEDULERS


def ended(call, capsys) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stop:
        run_main(call)
    return stop.value.code, capsys.readouterr().err


def raising(error):
    def main():
        raise error

    return main


def test_a_users_mistake_is_one_line(capsys):
    error = UserError('--out x: must end\nwith .pkl')
    assert ended(raising(error), capsys) == (2, 'error: --out x: must end with .pkl\n')
    assert ended(raising(MissingFile('no file a.json')), capsys) == (2, 'error: no file a.json\n')
    with pytest.raises(FileNotFoundError):  # what a caller in Python expects
        raise MissingFile('no file a.json')


@pytest.mark.parametrize('asks', [lambda: torch.zeros(2, 4).tensor, lambda: np.zeros((2, 4)).flip_([4, 4])])
def test_who_asks_boxes_for_what_mmdetections_have_is_told_that_they_are_plain(asks, capsys):
    status, text = ended(asks, capsys)
    last = text.splitlines()[-1]
    assert status == 1 and last.startswith('error: ') and ': boxes are plain here, arrays (n, 4) in transforms' in last
    status, text = ended(lambda: torch.zeros(2, 4).of_no_project, capsys)
    assert text.splitlines()[-1].endswith("object has no attribute 'of_no_project'")


def test_what_the_machine_refuses_is_one_line(capsys):
    for error, text in [
        (PermissionError(13, 'Permission denied', 'run'), 'error: Permission denied: run\n'),
        (OSError(28, 'No space left on device'), 'error: No space left on device\n'),
    ]:
        assert ended(raising(error), capsys) == (1, text)


@pytest.mark.parametrize('error', [RuntimeError('x'), ValueError('x'), KeyError('x'), FileNotFoundError(2, 'x', 'a')])
def test_anything_else_keeps_its_traceback(capsys, error):
    status, text = ended(raising(error), capsys)
    assert status == 1 and 'Traceback' in text and 'in main' in text and text.splitlines()[-1].startswith('error: ')


def test_debug_shows_the_traceback_of_mistakes_too(capsys, monkeypatch):
    monkeypatch.setenv('MMDET_DEBUG', '1')
    status, text = ended(raising(UserError('no')), capsys)
    assert status == 2 and 'Traceback' in text and text.endswith('error: no\n')


def test_stopped_by_a_signal(capsys):
    assert ended(raising(Interrupted('stopped by SIGTERM', 15)), capsys) == (143, 'stopped by SIGTERM\n')
    assert ended(raising(KeyboardInterrupt()), capsys) == (130, 'interrupted\n')


def test_unknown_types_deep_in_a_model(capsys):
    def main():
        MODELS.build(dict(type='ResNett', depth=50))

    status, text = ended(main, capsys)
    assert status == 2 and text == "error: unknown type 'ResNett' (model). Did you mean ResNet?\n"


def test_unknown_options_of_a_type(capsys):
    def main():
        MODELS.build(dict(type='FPN', in_channels=[8], out_channels=8, num_outs=1, colour='x'))

    status, text = ended(main, capsys)
    assert (status, text) == (2, "error: FPN: the config gives an unknown option 'colour'\n")
    status, text = ended(lambda: MODELS.build(dict(type='FPN', in_channels=[8])), capsys)
    assert (status, text) == (2, "error: FPN: the config lacks 'out_channels' and 'num_outs'\n")


def test_options_that_no_constructor_takes(capsys):
    status, text = ended(lambda: MODELS.build(dict(type='ResNet', dept=50)), capsys)
    assert (status, text) == (2, "error: ResNet: the config gives an unknown option 'dept'. Did you mean depth?\n")
    # that its base would have to take
    status, text = ended(lambda: MODELS.build(dict(type='ResNeXt', depth=50, dept=50)), capsys)
    assert status == 2 and "error: ResNeXt: the config gives an unknown option 'dept'" in text
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1)
    for way in {}, dict(convert_to_iter_based=True, epoch_length=4):
        scheduler = dict(type='PolyLR', optimizer=optimizer, eta_minimum=0.1, **way)
        status, text = ended(partial(PARAM_SCHEDULERS.build, scheduler), capsys)
        assert status == 2 and text.startswith("error: PolyLR: the config gives an unknown option 'eta_minimum'")


class Careless(nn.Module):
    def __init__(self, kernel: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, kernel, kernel=kernel)


def test_a_wrong_call_inside_a_constructor_is_no_wrong_option(capsys):
    status, text = ended(lambda: MODELS.build(dict(type=Careless, kernel=3)), capsys)
    assert status == 1 and 'self.conv = nn.Conv2d(' in text
    assert "error: Careless cannot be built from these options: TypeError: Conv2d.__init__() got an unexp" in text


def test_a_value_that_breaks_a_constructor_is_named_below_the_traceback(capsys):
    status, text = ended(lambda: MODELS.build(dict(type='FPN', in_channels=3, out_channels=8, num_outs=1)), capsys)
    assert status == 1 and 'Traceback' in text
    assert text.splitlines()[-1].startswith('error: FPN cannot be built from these options: TypeError: ')
    assert text.endswith('Given were in_channels=3, out_channels=8, num_outs=1\n')
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1)
    scheduler = dict(type='LinearLR', optimizer=optimizer, begin=3, end=1)
    status, text = ended(lambda: PARAM_SCHEDULERS.build(scheduler), capsys)
    assert status == 1 and 'error: LinearLR cannot be built from these options: ValueError: end should be' in text


def test_a_library_that_is_not_installed(capsys, monkeypatch):
    def missing(self):
        raise ImportError('Please run "pip install xyz"')

    monkeypatch.setattr('mmdet.models.backbones.resnet.ResNet.__init__', missing)
    status, text = ended(lambda: MODELS.build(dict(type='ResNet')), capsys)
    assert (status, text) == (1, 'error: ResNet: Please run "pip install xyz"\n')


def test_a_lost_connection_to_a_worker(capsys):
    def rebuild_storage_fd():  # torch.multiprocessing's
        raise ConnectionRefusedError(111, 'Connection refused')

    status, text = ended(rebuild_storage_fd, capsys)
    assert status == 1 and text.startswith("error: the connection to a data loader's worker is lost (Connection ref")
    assert '--resume' in text


def test_features_of_another_size(capsys):
    backbone = MODELS.build(dict(type='ResNet', depth=18, base_channels=8))
    status, text = ended(lambda: backbone(torch.zeros(1, 4, 8, 8)), capsys)
    assert status == 1 and 'Traceback' in text
    assert text.splitlines()[-1].startswith('error: ResNet gets features of another size than its options say: ')


def test_a_lost_worker(capsys):
    error = RuntimeError('DataLoader worker (pid 7) is killed by signal: Killed. Extra text')
    status, text = ended(raising(error), capsys)
    assert status == 1 and text.startswith('error: DataLoader worker (pid 7) is killed by signal: Killed. Often')
    for name in ('Terminated', 'Segmentation fault'):
        error = RuntimeError(f'DataLoader worker (pid 7) is killed by signal: {name}. ')
        status, text = ended(raising(error), capsys)
        assert status == 1 and 'memory' not in text and f'signal: {name}; --resume continues' in text


def test_later_ranks_let_the_first_speak(capsys, monkeypatch):
    waited = []
    monkeypatch.setenv('RANK', '1')
    monkeypatch.setattr(errors.time, 'sleep', waited.append)
    assert ended(raising(UserError('no')), capsys) == (2, 'error: no\n') and waited == [3]
    assert ended(raising(Interrupted('stopped', 15)), capsys) == (143, '')
    status, text = ended(raising(RuntimeError('[gloo] Connection closed by peer [127.0.0.1]:1')), capsys)
    assert status == 1 and text.startswith('error: lost the connection to another process') and waited[-1] == 8


def test_suggest():
    assert suggest('mask_rcn', ['mask_rcnn', 'faster_rcnn']) == ' Did you mean mask_rcnn?'
    assert suggest('xyz', ['mask_rcnn']) == ''


def test_what_checks_a_persons_input_raises_a_user_error():
    """Any other exception shows a traceback. The other rooms are libraries too, and check what code gives them."""
    package = Path(errors.__file__).parents[1]
    found = []
    for room in ('apis', 'cli', 'datasets', 'engine', 'models', 'visualization'):
        for path in sorted((package / room).rglob('*.py')):
            for node in ast.walk(ast.parse(path.read_text())):
                kind = getattr(getattr(node, 'exc', None), 'func', None)
                if isinstance(kind, ast.Name) and kind.id in ('ValueError', 'FileNotFoundError'):
                    found.append(f'{path.relative_to(package.parent)} line {node.lineno}: raise {kind.id}')
    assert found == []
