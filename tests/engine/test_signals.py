"""Signals through the command line: whenever they come, one line and the right exit status."""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from toy_task import ENVIRONMENT, write_config

from mmdet.config.errors import _state_of_the_machine

ROOT = Path(__file__).resolve().parents[2]
# In evaluation rank 1 has finished its images and gathers results, while rank 0 is still at them.
SLOW = """
import os, time
from toy_task import ToyDataset, ToyMetric
from mmdet.registry import DATASETS, METRICS

@DATASETS.register_module()
class SlowDataset(ToyDataset):
    slow_rank, seconds, training = '0', 3, False
    def __getitem__(self, index):
        if os.environ.get('RANK', '0') == self.slow_rank and (self.training or self.length == 5) and index >= 2:
            print('slow now', flush=True)
            time.sleep(self.seconds)
        return super().__getitem__(index)

@METRICS.register_module()
class SlowMetric(ToyMetric):
    def compute_metrics(self, results):
        print('measuring now', flush=True)
        time.sleep(3)
        return super().compute_metrics(results)
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """start(text, arguments) -> a running tools/train.py of the toy task with a module of slow parts."""
    (tmp_path / 'slow_parts.py').write_text(SLOW)
    monkeypatch.chdir(tmp_path)
    running = []

    def run(text: str = '', *arguments: str, before=(), terminal: int | None = None) -> subprocess.Popen:
        config = write_config(tmp_path, text="custom_imports['imports'] += ['slow_parts']\n" + text)
        env = {**ENVIRONMENT, 'PYTHONPATH': f'{tmp_path}{os.pathsep}{ENVIRONMENT["PYTHONPATH"]}'}
        command = [*before, sys.executable, ROOT / 'tools' / 'train.py', config, '--work-dir', 'run', '--seed', '0',
                   *arguments]
        output = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if terminal is not None:
            output = dict.fromkeys(('stdin', 'stdout', 'stderr'), terminal) | dict(
                start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY))
        running.append(subprocess.Popen([str(part) for part in command], env=env, **output))
        return running[-1]

    yield run
    for process in running:
        for pid in children(process) if process.poll() is None else ():
            os.kill(pid, signal.SIGKILL)
        process.kill()
        process.communicate()


def children(process: subprocess.Popen) -> list[int]:
    return list(map(int, Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()))


def wait_for(process: subprocess.Popen, text: str) -> str:
    seen = ''
    for line in process.stdout:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f'{text!r} did not come:\n{seen}\n{process.stderr.read()}')


def ended(process: subprocess.Popen, status: int, seconds: float = 60) -> tuple[str, str]:
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == status, (process.returncode, out[-2000:], err[-2000:])
    assert 'Traceback' not in err and len(err.splitlines()) <= 1, err
    return out, err


EVALUATION = "val_dataloader['dataset']['type'] = 'SlowDataset'\nval_dataloader['sampler']['shuffle'] = False\n"


WORKERS = "train_dataloader.update(num_workers=2, batch_size=1)\ntrain_dataloader['dataset']['length'] = 400\n"


@pytest.mark.slow
@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_workers_too(start, signum):
    """As scancel, systemd or a terminal send it; to a worker alone it means nothing."""
    process = start(WORKERS)
    wait_for(process, 'Epoch(train)')
    for pid in children(process):
        os.kill(pid, signum)
    wait_for(process, 'Epoch(train)')
    time.sleep(1)
    for pid in [*children(process), process.pid]:
        os.kill(pid, signum)
    _, err = ended(process, 128 + signum)
    assert f'stopped by {signum.name} after iteration' in err and Path('run/interrupted.pth').exists()


@pytest.mark.slow
@pytest.mark.parametrize('processes', ['1', '2'])
def test_a_closed_terminal(start, processes):
    terminal, inner = pty.openpty()
    text = WORKERS + 'find_unused_parameters = True\n'
    process = start(text, '--gpus', processes, terminal=inner)
    os.close(inner)
    seen = b''
    while b'Epoch 1/2' not in seen:
        seen += os.read(terminal, 1000)
    os.close(terminal)
    assert process.wait(60) == 128 + signal.SIGHUP
    assert Path('run/interrupted.pth').exists()
    ended(start(text, '--gpus', processes, '--resume'), 0)


@pytest.mark.slow
def test_nohup_outlives_the_terminal(start):
    process = start(WORKERS, '--cfg-options', 'train_cfg.max_epochs=1', before=['nohup'])
    wait_for(process, 'Epoch(train)')
    process.send_signal(signal.SIGHUP)
    ended(process, 0)


ABANDONED = """
import os, socket, sys, time
from multiprocessing import get_context, reduction
from mmdet.engine.workers import start_worker

def worker(connection, started):
    if started:
        start_worker(0, num_workers=1, rank=0, seed=0)
    connection.send(reduction.DupFd(os.open(os.devnull, os.O_RDONLY))._id[0])
    connection.recv()

if __name__ == '__main__':
    context = get_context('fork')
    here, there = context.Pipe()
    process = context.Process(target=worker, args=(there, sys.argv[1] == 'started'))
    process.start()
    asks = socket.socket(socket.AF_UNIX)
    asks.connect(here.recv())
    asks.close()
    time.sleep(1)
    here.send(None)
    process.join()
"""


@pytest.mark.parametrize('kind', ['plain', 'started'])
def test_a_process_killed_while_it_asks_for_a_batch_leaves_no_traceback(kind, tmp_path):
    """Its data loader's workers live a moment longer, and Python prints there what they have lost."""
    Path(tmp_path, 'abandoned.py').write_text(ABANDONED)
    done = subprocess.run([sys.executable, 'abandoned.py', kind], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': str(ROOT)}, timeout=120)  # fmt: skip
    assert done.returncode == 0 and ('Traceback' in done.stderr) == (kind == 'plain')


ORPHANS = """
import os
from functools import partial
from torch.utils.data import DataLoader
from mmdet.engine.workers import start_worker

class Large(list):
    def __getitem__(self, index):
        return bytes(10**6)  # more than a pipe holds, as masks are

loader = DataLoader(Large(range(100)), num_workers=2, collate_fn=list,
                    worker_init_fn=partial(start_worker, num_workers=2, rank=0, seed=0))
batches = iter(loader)
next(batches)
os._exit(7)  # as after a kill -9: nobody ends the workers
"""


def test_workers_end_with_the_process_they_load_for(tmp_path):
    """They hold its output: whoever reads that would wait for them, too."""
    done = subprocess.run([sys.executable, '-c', ORPHANS], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': str(ROOT)}, timeout=60)  # fmt: skip
    assert done.returncode == 7 and done.stderr == ''


def test_a_worker_that_is_killed_while_its_batch_is_awaited():
    cause = RuntimeError('DataLoader worker (pid 7) is killed by signal: Killed. ')
    error = RuntimeError('DataLoader worker (pid(s) 7) exited unexpectedly')
    assert _state_of_the_machine(error).startswith('DataLoader worker (pid(s) 7) exited unexpectedly; --resume')
    error.__cause__ = cause  # raised by torch's signal handler
    assert 'is killed by signal: Killed. Often the machine ran out of memory' in _state_of_the_machine(error)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_named(start):
    process = start(WORKERS)
    wait_for(process, 'Epoch(train)')
    os.kill(children(process)[0], signal.SIGKILL)
    _, err = ended(process, 1)
    lost = "the connection to a data loader's worker is lost"  # where a batch of it was on its way
    assert 'is killed by signal: Killed. Often the machine ran out of memory' in err or lost in err


@pytest.mark.slow
@pytest.mark.parametrize('slow_rank', ['0', '1'])
def test_a_signal_while_one_evaluates_and_the_other_has_finished(start, slow_rank):
    text = EVALUATION.replace('SlowDataset', f'SlowDataset{slow_rank}')
    Path('slow_parts.py').write_text(SLOW + f"""
@DATASETS.register_module()
class SlowDataset{slow_rank}(SlowDataset):
    slow_rank, seconds = {slow_rank!r}, 2
""")
    process = start(text, '--gpus', '2')
    wait_for(process, 'slow now')
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    _, err = ended(process, 128 + signal.SIGTERM)
    assert 'stopped by SIGTERM after iteration 2 ' in err and Path('run/interrupted.pth').exists()
    process = start('', '--gpus', '2', '--resume')
    out, _ = ended(process, 0, 120)
    assert out.index('Epoch(val) [1]') < out.index('Epoch(train) [2]') and Path('run/epoch_2.pth').exists()


@pytest.mark.slow
def test_a_signal_while_rank_0_measures(start):
    process = start("val_evaluator['type'] = 'SlowMetric'\n", '--gpus', '2')
    wait_for(process, 'measuring now')
    process.send_signal(signal.SIGTERM)
    _, err = ended(process, 128 + signal.SIGTERM)
    assert 'stopped by SIGTERM after iteration 2 ' in err
    out, _ = ended(start('', '--gpus', '2', '--resume'), 0, 120)
    assert 'Epoch(val) [1]' not in out and 'Epoch(val) [2]' in out


@pytest.mark.slow
@pytest.mark.parametrize('processes', ['1', '2'])
def test_a_second_signal_ends_a_run_at_once_in_one_line(start, processes):
    slow = "train_dataloader['dataset']['type'] = 'SlowTraining'\n"
    Path('slow_parts.py').write_text(SLOW + """
@DATASETS.register_module()
class SlowTraining(SlowDataset):
    seconds, training = 60, True
""")
    process = start(slow, '--gpus', processes)
    wait_for(process, 'slow now')
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(1)
    _, err = ended(process, 128 + signal.SIGINT, 20)
    assert err == 'stopped at once by a second signal; --resume continues from the last checkpoint\n'


@pytest.mark.slow
@pytest.mark.parametrize('delay', [1, 4, 7])
def test_two_signals_at_any_moment_are_one_line(start, delay):
    process = start()
    time.sleep(delay)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    out, err = process.communicate(timeout=60)
    assert process.returncode in (0, 130, -2), err
    assert len(err.splitlines()) <= 1, err


@pytest.mark.slow
@pytest.mark.parametrize('hung', [0, 1])
def test_a_process_that_hangs_is_named(start, hung):
    process = start("env_cfg = dict(dist_cfg=dict(timeout=4))\ntrain_cfg['max_epochs'] = 5000\n", '--gpus', '2')
    wait_for(process, 'Epoch(val)')
    pid = next(pid for pid in children(process) if f'\0RANK={hung}\0' in Path(f'/proc/{pid}/environ').read_text())
    os.kill(pid, signal.SIGSTOP)
    _, err = ended(process, 1)
    assert err.startswith('error: no process has made progress for')
    assert f'Furthest behind is process {hung}: ' in err and 'dist_cfg=dict(timeout=SECONDS)' in err
