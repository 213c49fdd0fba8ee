"""What one sees of a training: on a terminal a line that moves, elsewhere plain lines; the summary at the end."""

import os
import pty
import re
import signal
import sys
import termios
import threading
import time
from pathlib import Path

import pytest
from mmengine.hooks import Hook
from toy_task import write_config

from mmdet.config.errors import Interrupted
from mmdet.engine.hooks.live_line import _line, percent

rich_console = pytest.importorskip('rich.console', reason='rich draws the line')
COLOUR = re.compile(r'\x1b\[[\d;]*m')


class Terminal:
    """A pseudo terminal in the place of standard output; `text` is what arrived there."""

    def __init__(self):
        self.master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (24, 200)) if hasattr(termios, 'tcsetwinsize') else None
        self.stream, self.parts = open(slave, 'w'), []
        self.modes = termios.tcgetattr(self.stream)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        while True:
            try:
                part = os.read(self.master, 65536)
            except OSError:
                return
            if not part:
                return
            self.parts.append(part)

    def text(self) -> str:
        assert termios.tcgetattr(self.stream) == self.modes
        self.stream.close()
        self.reader.join(10)
        return COLOUR.sub('', b''.join(self.parts).decode())


@pytest.fixture
def watch(monkeypatch):
    monkeypatch.setenv('TERM', 'xterm-256color')
    monkeypatch.setenv('COLUMNS', '200')

    def watch() -> Terminal:  # in the test itself: pytest puts its own standard output back after a fixture
        terminal = Terminal()
        monkeypatch.setattr(sys, 'stdout', terminal.stream)
        return terminal

    return watch


def config(folder: Path, text: str = '') -> Path:
    return write_config(folder, text=f"train_dataloader['dataset']['length'] = 20\n{text}")


class Slow(Hook):
    """Takes its time where it counts as waiting for data, or as work."""

    def __init__(self, data: float = 0, work: float = 0):
        self.data, self.work = data, work

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        time.sleep(self.data)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        time.sleep(self.work)


class CtrlC(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 4:
            os.kill(os.getpid(), signal.SIGINT)


def log_of(folder: str = 'run') -> str:
    return next(Path(folder).glob('*/*.log')).read_text()


def test_a_terminal_sees_a_line_that_moves(tmp_path, watch, train):
    terminal = watch()
    train(config(tmp_path), hooks=[Slow(work=0.03)])
    sys.stdout.flush()
    assert sys.stdout is terminal.stream
    seen = terminal.text()
    fields = r'Epoch (\d)/2 [━╸╺]+ (\d+)/10  loss (\d+\.\d+)  lr (\S+)  data wait \d+%  .*?ETA 0:00:0\d'
    drawn = re.findall(fields, seen)
    assert {epoch for epoch, *_ in drawn} == {'1', '2'}
    steps = [10 * int(epoch) + int(step) for epoch, step, *_ in drawn]
    assert steps == sorted(steps) and len(set(steps)) > 1
    assert re.search(r'Epoch 2/2 .* mAP \d\d\.\d, best \d\d\.\d \(epoch 1\)', seen)
    assert 'Epoch(train)' not in seen and len(re.findall(r'Epoch\(val\) \[\d\]\[5/5\]    mAP', seen)) == 2
    assert seen.count('Finished. Best mAP') == 1
    assert seen.rfind('\x1b[?25h') > seen.rfind('\x1b[?25l')  # the cursor is there
    assert len(re.findall(r'Epoch\(train\)', log_of())) == 20 and '━' not in log_of() and '\x1b' not in log_of()


def test_ctrl_c_leaves_the_terminal_as_it_was(tmp_path, watch, train):
    terminal = watch()
    with pytest.raises(Interrupted):
        train(config(tmp_path), hooks=[CtrlC()])
    assert sys.stdout is terminal.stream
    print('afterwards', flush=True)
    seen = terminal.text()
    assert 'Epoch 1/2' in seen and seen.endswith('\x1b[2Kafterwards\r\n')  # the line is gone
    assert seen.rfind('\x1b[?25h') > seen.rfind('\x1b[?25l')


@pytest.mark.parametrize('reason', ['no rich', 'dumb', 'no terminal', 'another process'])
def test_plain_lines_elsewhere(tmp_path, request, capsys, monkeypatch, train, reason):
    if reason == 'no terminal':
        train(config(tmp_path))
        seen = capsys.readouterr().out
    else:
        terminal = request.getfixturevalue('watch')()
        if reason == 'no rich':
            monkeypatch.setitem(sys.modules, 'rich.live', None)
        elif reason == 'dumb':
            monkeypatch.setenv('TERM', 'dumb')
        else:
            monkeypatch.setattr('mmdet.engine.hooks.live_line.is_main_process', lambda: False)
        train(config(tmp_path))
        seen = terminal.text()
    assert len(re.findall(r'Epoch\(train\)', seen)) == 20 and '━' not in seen and '\x1b[2K' not in seen


def test_counted_in_iterations(tmp_path, watch, train):
    terminal = watch()
    path = config(tmp_path, """
train_cfg = dict(by_epoch=False, max_iters=6, val_interval=3)
param_scheduler = []
default_hooks = dict(logger=dict(type='LoggerHook', interval=1))
""")
    train(path, hooks=[Slow(work=0.1)])
    assert re.search(r'Iteration [━╸╺]+ [2-6]/6  loss', terminal.text())


@pytest.mark.parametrize('width', [20, 40, 60, 79, 120])
def test_the_line_fits_a_terminal_of_any_width(width):
    facts = ['loss 0.812', 'lr 0.02', 'data wait 3%', 'bbox_mAP 31.2, best 33.0 (epoch 2)', 'ETA 0:12:03']
    console = rich_console.Console(width=width, soft_wrap=True)
    with console.capture() as capture:
        console.print(_line(width, 'Epoch 3/12', 45, 120, facts))
    drawn = capture.get()
    assert drawn.count('\n') == 1 and len(drawn.rstrip()) <= width and drawn.startswith('Epoch 3/12 ')
    assert ('━' in drawn) == (width == 120)


def test_how_metrics_are_read():
    for key in ('coco/bbox_mAP_50', 'coco/AR@100', 'pascal_voc/AP50', 'coco/segm_mAP_s'):
        assert percent(key, 0.25) == '25.0'
    assert percent('val_loss', 0.25) == '0.25' and percent('coco/bbox_mAP', -1) == '-'


def test_the_summary_names_what_is_there(tmp_path, capsys, train):
    runner = train(config(tmp_path))
    lines = capsys.readouterr().out.partition('Finished. ')[2].splitlines()
    best = runner.message_hub.get_info('best_score')
    epoch = re.search(r'epoch_(\d)', runner.message_hub.get_info('best_ckpt'))[1]
    assert lines[0] == f'Best mAP: {100 * best:.1f} (epoch {epoch})'
    words = {line.split()[0]: line.split()[1:] for line in lines[1:5]}
    assert words['best'] == [f'run/best_mAP_epoch_{epoch}.pth'] and words['last'] == ['run/epoch_2.pth']
    for path in (*words['best'], *words['last'], *words['log'], lines[5].split()[3]):
        assert Path(path).is_file(), path
    assert words['curves'] == ['mmdet', 'curves', 'run']
    assert lines[5].split() == ['next', 'mmdet', 'test', 'run/toy.py', *words['best'], '--out', 'run/found.pkl']
    assert lines[6].split() == ['mmdet', 'analyze', 'run/toy.py', 'run/found.pkl']


# ---------------------------------------------------------------------- the interval, and the wait for data


@pytest.mark.parametrize('given, lines, said', [(50, 5, True), (8, 5, False), (5, 2, False), (1, 10, False)])
def test_each_epoch_has_a_few_lines_in_the_log(tmp_path, train, given, lines, said):
    train(config(tmp_path), options={'default_hooks.logger.interval': given, 'train_cfg.max_epochs': 1})
    log = log_of()
    assert len(re.findall(r'Epoch\(train\)', log)) == lines
    assert log.count('is longer than an epoch of 10 iterations: the log has a line every 2') == said


@pytest.mark.parametrize('slow, said', [(Slow(data=0.04), 1), (Slow(work=0.04), 0)])
def test_waiting_for_data_is_said_once_with_its_remedy(tmp_path, train, slow, said):
    train(config(tmp_path, "custom_hooks = [dict(type='DataWaitHook', window=5)]\n"), hooks=[slow])
    found = re.findall(r'The data is the bottleneck: (0\.\d+) of (0\.\d+) s of an iteration \((\d+)%, mean of 5\)(.*)',
                       log_of())
    assert len(found) == said
    for waited, whole, share, remedies in found:
        assert float(waited) >= 0.04 and abs(100 * float(waited) / float(whole) - int(share)) < 3
        assert re.search(r'train_dataloader.num_workers=\d \(it is 0; \d+ cores here\)', remedies)
        assert 'persistent_workers=True' in remedies and 'Resize' in remedies
