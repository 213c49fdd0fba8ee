"""Processes: started, joined, ended together; every missing piece is named."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from toy_task import ENVIRONMENT

from mmdet.config.errors import UserError
from mmdet.engine import launch


@pytest.fixture(autouse=True)
def no_launcher_variables(monkeypatch):
    for name in list(os.environ):
        if name.startswith(('SLURM_', 'OMPI_', 'MASTER_', 'MMDET_S')) or name in (
            'RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'LOCAL_WORLD_SIZE', 'PORT', 'NNODES', 'NODE_RANK'):  # fmt: skip
            monkeypatch.delenv(name)


def test_more_gpus_than_there_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    launch.check_gpus(2)
    with pytest.raises(UserError, match='4 GPUs asked, this machine has 2'):
        launch.check_gpus(4)
    with pytest.raises(UserError, match='at least 1'):
        launch.check_gpus(0)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    launch.check_gpus(4)


def test_a_taken_port_is_replaced_unless_machines_must_agree(monkeypatch):
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        port = taken.getsockname()[1]
        monkeypatch.setenv('PORT', str(port))
        assert launch._port(nodes=1) != port
        assert launch._port(nodes=2) == port
    assert launch._port(nodes=1) == port
    monkeypatch.setenv('PORT', 'abc')
    with pytest.raises(UserError, match="PORT='abc' is not a number"):
        launch._port(nodes=1)
    monkeypatch.setenv('PORT', '70000')
    with pytest.raises(UserError, match='port 70000 .* from 0 to 65535'):
        launch._port(nodes=1)


@pytest.mark.parametrize(
    'variables, expected',
    [
        (dict(NNODES='2'), 'NNODES=2 needs MASTER_ADDR'),
        (dict(NNODES='2', NODE_RANK='2', MASTER_ADDR='a'), 'NODE_RANK=2 does not fit NNODES=2'),
        (dict(NNODES='two'), "NNODES='two' is not a number"),
    ],
)
def test_several_machines_need_their_variables(monkeypatch, variables, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=expected):
        launch.spawn(2)


def test_one_process_stays_as_it_is(monkeypatch):
    launch.spawn(1)
    monkeypatch.setenv('MMDET_SPAWNED', '1')
    launch.spawn(8)


@pytest.mark.parametrize('launcher, start', [('pytorch', 'torchrun'), ('slurm', 'srun'), ('mpi', 'mpirun')])
def test_launchers_that_did_not_launch(launcher, start):
    with pytest.raises(UserError, match=f'not in the environment; start with {start}'):
        launch.join_processes(launcher)


def joined(monkeypatch, launcher, **variables) -> tuple[dict, tuple]:
    """The environment and arguments with which the process group would be joined."""
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'LOCAL_WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT',
                 'GLOO_SOCKET_IFNAME'):  # fmt: skip
        monkeypatch.setenv(name, '')  # undone after the test
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    calls = []
    monkeypatch.setattr(torch.distributed, 'init_process_group', lambda *a, **k: calls.append((a, k)))
    launch.join_processes(launcher, dict(dist_cfg=dict(timeout=7)))
    return dict(os.environ), calls[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason='checks the choice of gloo without a GPU')
def test_slurm_on_cpu(monkeypatch, tmp_path):
    scontrol = tmp_path / 'scontrol'
    scontrol.write_text('#!/bin/sh\necho node7\necho node8\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
    env, (args, options) = joined(monkeypatch, 'slurm', SLURM_PROCID='3', SLURM_NTASKS='4', SLURM_LOCALID='1',
                                  SLURM_NODELIST='node[7-8]', SLURM_NTASKS_PER_NODE='2')  # fmt: skip
    assert (env['RANK'], env['WORLD_SIZE'], env['LOCAL_RANK'], env['MASTER_ADDR'], env['MASTER_PORT']) == (
        '3', '4', '1', 'node7', '29500')  # fmt: skip
    assert args == ('gloo',) and options['timeout'].total_seconds() == 67  # asked 7; who started them knows first
    for job, port in (('70411', '29911'), ('70412', '29912')):  # that may share a node
        env, _ = joined(monkeypatch, 'slurm', SLURM_PROCID='0', SLURM_NTASKS='4', SLURM_NODELIST='n', SLURM_JOB_ID=job)
        assert env['MASTER_PORT'] == port
    monkeypatch.delenv('SLURM_JOB_ID')
    scontrol.write_text('#!/bin/sh\nexit 1\n')
    with pytest.raises(UserError, match='cannot expand SLURM_NODELIST=node.*set MASTER_ADDR'):
        joined(monkeypatch, 'slurm', SLURM_PROCID='3', SLURM_NTASKS='4', SLURM_NODELIST='node[7-8]')


@pytest.mark.skipif(torch.cuda.is_available(), reason='checks the choice of gloo without a GPU')
def test_mpi_on_one_and_several_machines(monkeypatch):
    variables = dict(OMPI_COMM_WORLD_RANK='1', OMPI_COMM_WORLD_SIZE='2', OMPI_COMM_WORLD_LOCAL_RANK='1')
    env, _ = joined(monkeypatch, 'mpi', **variables, OMPI_COMM_WORLD_LOCAL_SIZE='2')
    assert (env['RANK'], env['MASTER_ADDR'], env['GLOO_SOCKET_IFNAME']) == ('1', '127.0.0.1', 'lo')
    with pytest.raises(UserError, match='set MASTER_ADDR'):
        joined(monkeypatch, 'mpi', **variables, OMPI_COMM_WORLD_LOCAL_SIZE='1')


SCRIPT = """
import os, sys, time
from mmdet.engine.launch import spawn
spawn({processes})
rank = int(os.environ['RANK'])
def print(*values, flush=True):
    os.write(1, (' '.join(map(str, values)) + '\\n').encode())  # one write a line: two processes share the pipe
{body}
"""


def start(tmp_path, body: str, processes: int = 2) -> subprocess.Popen:
    script = tmp_path / 'script.py'
    script.write_text(SCRIPT.format(body=body, processes=processes))
    env = {k: v for k, v in ENVIRONMENT.items() if k not in ('OMP_NUM_THREADS', 'RANK', 'MMDET_SPAWNED')}
    return subprocess.Popen([sys.executable, str(script)], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True)  # fmt: skip


def test_processes_get_their_rank_port_and_share_of_cores(tmp_path):
    process = start(tmp_path, "print(rank, *(os.environ[n] for n in ('WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', "
                              "'OMP_NUM_THREADS')), flush=True)")  # fmt: skip
    out, _ = process.communicate(timeout=120)
    share = max(1, launch.cpu_count() // 2)
    assert sorted(out.splitlines()) == [f'{r} 2 {r} 127.0.0.1 {share}' for r in (0, 1)]
    assert process.returncode == 0


def test_when_one_process_fails_all_end(tmp_path):
    body = "print(os.getpid(), flush=True)\nif rank == 1: time.sleep(1); sys.exit(3)\ntime.sleep(600)"
    process = start(tmp_path, body)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 3
    assert not any(alive(int(pid)) for pid in out.split())


def test_one_report_of_several_is_printed(tmp_path):
    """All meet the mistake, or one does and the others notice its end, even before it has ended."""
    same = "raise UserError('wrong')"
    one = """
if rank == 0:
    raise RuntimeError('[gloo] Connection closed by peer')
time.sleep(1)
raise UserError('wrong')
"""
    for body in (same, one):
        text = '\n    '.join(body.strip().splitlines())
        process = start(tmp_path, f"""
from mmdet.config.errors import UserError, run_main
def main():
    {text}
run_main(main)
""")
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 2 and out == 'error: wrong\n'


def test_a_killed_process_is_reported(tmp_path):
    body = "import signal\nif rank == 1: os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(600)"
    process = start(tmp_path, body)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + 9
    assert 'error: process 1 of 2 was ended by SIGKILL (often: the machine ran out of memory)' in out


@pytest.mark.skipif(sys.platform != 'linux', reason='parent-death signals are Linux only')
def test_no_orphans_when_the_launcher_is_killed(tmp_path):
    process = start(tmp_path, "print(os.getpid(), flush=True)\ntime.sleep(600)")
    pids = [int(process.stdout.readline()) for _ in range(2)]
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, pids))


def test_signals_are_passed_on(tmp_path):
    body = """
import signal
def stop(signum, frame):
    print('stopped', rank, flush=True)
    sys.exit(128 + signum)
signal.signal(signal.SIGTERM, stop)
print('ready', flush=True)
time.sleep(600)
"""
    process = start(tmp_path, body)
    for _ in range(2):
        assert process.stdout.readline() == 'ready\n'
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert sorted(out.splitlines()) == ['stopped 0', 'stopped 1'] and process.returncode == 143


def alive(pid: int) -> bool:
    try:
        state = open(f'/proc/{pid}/stat').read().split(')')[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != 'Z'
