"""Processes: started by ``--gpus N``, torchrun, Slurm or MPI, on GPUs (nccl) or without (gloo).

mmengine 0.10.7's `init_dist` calls `torch.cuda.set_device` whatever the machine. Joining the process
group here first makes it leave that out; can go when `init_dist` runs without a GPU.
"""

import ctypes
import datetime
import functools
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmdet.config.errors import SPAWNED, UserError, report_name

# torch is imported where it is needed: the launching process waits for nothing but its children.

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')
TIMEOUT = 1800  # seconds without progress after which a run ends, unless env_cfg.dist_cfg.timeout says otherwise
_MARGIN = 60  # a collective waits longer, by so many seconds: who started the processes can say which one hangs
_DEFAULT_PORT = 29500
_timeout = TIMEOUT


def stop_signals() -> list[signal.Signals]:
    """Those after which a run saves its state. The last comes when a terminal is closed; nohup has it ignored."""
    hears = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *[signal.SIGHUP] * hears]


def mute_closed_terminal(signum: int) -> None:
    """After SIGHUP what is printed goes nowhere: a terminal that was closed makes an error of it."""
    if signum == signal.SIGHUP:
        for output in 1, 2:
            if stat.S_ISCHR(os.fstat(output).st_mode):
                os.dup2(os.open(os.devnull, os.O_WRONLY), output)


def check_gpus(asked: int) -> None:
    """Raise UserError when more processes are asked than there are GPUs (without a GPU any number runs)."""
    import torch

    if asked < 1:
        raise UserError(f'--gpus {asked}: at least 1 process is needed')
    if torch.cuda.is_available() and asked > torch.cuda.device_count():
        there = torch.cuda.device_count()
        visible = os.environ.get('CUDA_VISIBLE_DEVICES')
        shown = f' (CUDA_VISIBLE_DEVICES={visible})' if visible is not None else ''
        raise UserError(f'{asked} GPUs asked, this machine has {there}{shown}. Ask for {there}, or run on CPU '
                        "with CUDA_VISIBLE_DEVICES=''")


def spawn(gpus: int, check: Callable[[], object] = lambda: None) -> None:
    """Run this very command in `gpus` processes of this machine, after `check`, and leave with their exit status.

    Returns at once in a process that is one of them, and when one process is enough. NNODES, NODE_RANK,
    MASTER_ADDR and PORT (or MASTER_PORT) of the environment join several machines, as torchrun's do.
    """
    nodes = _integer('NNODES', 1)
    node = _integer('NODE_RANK', 0)
    if is_spawned() or (gpus == 1 and nodes == 1):
        return
    if not 0 <= node < nodes:
        raise UserError(f'NODE_RANK={node} does not fit NNODES={nodes}: ranks count from 0')
    if nodes > 1 and 'MASTER_ADDR' not in os.environ:
        raise UserError(f'NNODES={nodes} needs MASTER_ADDR: the address of the machine with NODE_RANK=0')
    check()
    environment = {
        **os.environ,
        'MASTER_ADDR': os.environ.get('MASTER_ADDR', '127.0.0.1'),
        'MASTER_PORT': str(_port(nodes)),
        'WORLD_SIZE': str(gpus * nodes),
        'LOCAL_WORLD_SIZE': str(gpus),
    }
    environment.setdefault('TORCH_CPP_LOG_LEVEL', 'ERROR')  # a peer that is late makes no page of warnings
    environment.setdefault('OMP_NUM_THREADS', str(max(1, cpu_count() // gpus)))
    environment.setdefault('MKL_NUM_THREADS', environment['OMP_NUM_THREADS'])  # unset, mmengine warns and takes 1
    with tempfile.TemporaryDirectory() as reports:
        children = [
            subprocess.Popen(
                [sys.executable, *_this_command()],
                env={**environment, SPAWNED: reports, 'RANK': str(node * gpus + local), 'LOCAL_RANK': str(local)},
                preexec_fn=_die_with_parent,
                start_new_session=True,  # the terminal's Ctrl-C reaches us alone; we pass it on, once
            )
            for local in range(gpus)
        ]
        status = _wait(children, Path(reports))
    sys.exit(status)


def _this_command() -> list[str]:
    """What was typed after `python`; run as a file, `python -m mmdet` would put the package's folder on the path."""
    return ['-m', 'mmdet', *sys.argv[1:]] if Path(sys.argv[0]).name == '__main__.py' else sys.argv


def is_spawned() -> bool:
    """Whether this process is one of those that `spawn` started."""
    return SPAWNED in os.environ  # RANK alone may be set by a cluster for its own purposes


def _wait(children: list[subprocess.Popen], reports: Path) -> int:
    """Wait for all; pass signals on; when one fails, end the others and print its report, or what ended it.

    Returns its exit status.
    """
    stopping = []

    def forward(signum, frame):
        mute_closed_terminal(signum)
        stopping.append(signum)
        for child in children:
            if child.poll() is None:
                child.send_signal(signum)

    def only_lost(child):
        return (reports / report_name(child.pid, lost=True)).exists()

    def by_blame():
        """Those that failed; those last that lost the connection to another, which they may do before it ends."""
        return sorted((child for child in children if child.poll()), key=only_lost)

    for signum in stop_signals():
        signal.signal(signum, forward)
    culprit, first = None, 0.0
    while any(child.poll() is None for child in children):
        stalled = _stalled(reports)
        if stalled:
            print(stalled, file=sys.stderr, flush=True)
            for child in children:
                child.kill()
                child.wait()
            return 1
        failed = by_blame()
        if failed and not stopping:  # after a signal the others may still be saving
            first = first or time.monotonic()
            if not only_lost(failed[0]) or time.monotonic() > first + 8:
                culprit = failed[0]
                for child in children:
                    child.kill()
                break
        time.sleep(0.05)
    for child in children:
        child.wait()
    culprit = culprit or next(iter(by_blame()), None)
    return _last_words(culprit, children, reports) if culprit else 0


def report_progress(count: int, doing: str) -> None:
    """Tell the process that started this one how far it is, and what it does next."""
    if is_spawned():
        path = Path(os.environ[SPAWNED], f'{os.environ["RANK"]}.progress')
        with open(path, 'r+' if path.exists() else 'w') as file:  # one write of one line, of one length
            file.write(f'{_timeout} {count} {doing}'.ljust(100))


def _stalled(reports: Path) -> str | None:
    """What to say where no process has made progress for as long as they allow each other, else None."""
    files = sorted(reports.glob('*.progress'))
    waited = time.time() - max((file.stat().st_mtime for file in files), default=time.time())
    if waited < 1 or not files:
        return None
    lines = {int(file.stem): file.read_text().split(maxsplit=2) for file in files}
    states = [(int(line[1]), rank, line[2].strip()) for rank, line in lines.items() if line and waited > float(line[0])]
    if not states:
        return None
    behind = [(rank, doing) for count, rank, doing in states if count == min(states)[0]]
    last = '; '.join(f'process {rank}: {doing}' for rank, doing in behind[:4])
    return (f'error: no process has made progress for {waited:.0f} s. Furthest behind is {last}. '
            'If that may take so long, set env_cfg=dict(dist_cfg=dict(timeout=SECONDS))')


def _last_words(child: subprocess.Popen, children: list[subprocess.Popen], reports: Path) -> int:
    """Print why a process failed; returns the status to leave with."""
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        why = ' (often: the machine ran out of memory)' if name == 'SIGKILL' else ''
        text = f'error: process {children.index(child)} of {len(children)} was ended by {name}{why}'
        print(text, file=sys.stderr, flush=True)
        return 128 - child.returncode
    for lost in (False, True):
        report = reports / report_name(child.pid, lost)
        if report.exists():
            print(report.read_text(), file=sys.stderr, flush=True)
    return child.returncode


def _die_with_parent() -> None:
    """In the child: be sent SIGTERM when the launcher goes, however it goes (Linux only)."""
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1 = PR_SET_PDEATHSIG


def cpu_count() -> int:
    """How many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def _integer(name: str, default: int) -> int:
    value = os.environ.get(name, str(default))
    try:
        return int(value)
    except ValueError:
        raise UserError(f'environment variable {name}={value!r} is not a number') from None


def _port(nodes: int) -> int:
    """PORT or MASTER_PORT if free, else any free port; several machines must agree, so there it is kept.

    A fixed default would be taken twice by two runs that start at the same time.
    """
    wanted = _integer('PORT', _integer('MASTER_PORT', _DEFAULT_PORT if nodes > 1 else 0))
    if not 0 <= wanted < 2**16:
        raise UserError(f'port {wanted} of the environment is none: PORT is a number from 0 to {2**16 - 1}')
    if nodes > 1:
        return wanted
    for port in (wanted, 0):
        with socket.socket() as probe:
            try:
                probe.bind(('127.0.0.1', port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise UserError('no free port on this machine')


def join_processes(launcher: str, env_cfg: dict | None = None) -> None:
    """Join the process group that `launcher` (or `spawn`) describes in the environment: nccl with GPUs, gloo without.

    Args:
        launcher: none, pytorch (torchrun), slurm or mpi.
        env_cfg: the config's; its dist_cfg.timeout is how many seconds the processes wait for one that hangs.

    Raises:
        UserError: the launcher's variables are missing, or this machine has fewer GPUs than processes.
    """
    import torch
    import torch.distributed as dist

    if launcher == 'none' or dist.is_initialized():
        return
    {'pytorch': _from_torchrun, 'slurm': _from_slurm, 'mpi': _from_mpi}[launcher]()
    local_rank = int(os.environ['LOCAL_RANK'])
    cuda = torch.cuda.is_available()
    if cuda:
        check_gpus(max(int(os.environ.get('LOCAL_WORLD_SIZE', 1)), local_rank + 1))
        torch.cuda.set_device(local_rank)
    if os.environ['MASTER_ADDR'] in ('127.0.0.1', 'localhost') and sys.platform == 'linux':
        # gloo looks its own address up by host name, which a container often cannot resolve. Beside nccl too:
        # StopSafelyHook's group is on the CPU.
        os.environ.setdefault('GLOO_SOCKET_IFNAME', 'lo')
    global _timeout
    _timeout = ((env_cfg or {}).get('dist_cfg') or {}).get('timeout') or TIMEOUT
    try:
        dist.init_process_group('nccl' if cuda else 'gloo', timeout=patience())
    except RuntimeError as error:
        address = f'{os.environ["MASTER_ADDR"]}:{os.environ["MASTER_PORT"]}'
        raise UserError(
            f'process {os.environ["RANK"]} of {os.environ["WORLD_SIZE"]} cannot meet the others at {address}: '
            f'{str(error).splitlines()[0].rstrip(".")}. Is the same command running on each machine, with the same '
            'MASTER_ADDR and PORT, and the port free?') from error


def _need(launcher: str, *names: str) -> None:
    absent = [name for name in names if name not in os.environ]
    if absent:
        start = {'pytorch': 'torchrun', 'slurm': 'srun', 'mpi': 'mpirun'}[launcher]
        raise UserError(f'--launcher {launcher}: {", ".join(absent)} not in the environment; start with '
                        f'{start}, or use --gpus N without --launcher')


def _from_torchrun() -> None:
    _need('pytorch', 'RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')


def _from_slurm() -> None:
    _need('slurm', 'SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_NODELIST')
    os.environ['RANK'] = os.environ['SLURM_PROCID']
    os.environ['WORLD_SIZE'] = os.environ['SLURM_NTASKS']
    os.environ['LOCAL_RANK'] = os.environ.get('SLURM_LOCALID', '0')
    per_node = os.environ.get('SLURM_NTASKS_PER_NODE', '')
    if per_node.isdigit():
        os.environ['LOCAL_WORLD_SIZE'] = per_node
    if 'MASTER_ADDR' not in os.environ:
        nodes = os.environ['SLURM_NODELIST']
        found = subprocess.run(['scontrol', 'show', 'hostnames', nodes], capture_output=True, text=True)
        if found.returncode or not found.stdout.strip():
            raise UserError(f'--launcher slurm: scontrol cannot expand SLURM_NODELIST={nodes}; set MASTER_ADDR')
        os.environ['MASTER_ADDR'] = found.stdout.split()[0]
    own_port = _DEFAULT_PORT + _integer('SLURM_JOB_ID', 0) % 1000  # two jobs may have their first process on one node
    os.environ.setdefault('MASTER_PORT', os.environ.get('PORT', str(own_port)))


def _from_mpi() -> None:
    _need('mpi', 'OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK')
    for name in ('RANK', 'SIZE', 'LOCAL_RANK', 'LOCAL_SIZE'):
        if f'OMPI_COMM_WORLD_{name}' in os.environ:
            ours = {'SIZE': 'WORLD_SIZE', 'LOCAL_SIZE': 'LOCAL_WORLD_SIZE'}.get(name, name)
            os.environ[ours] = os.environ[f'OMPI_COMM_WORLD_{name}']
    if 'MASTER_ADDR' not in os.environ:
        if os.environ.get('LOCAL_WORLD_SIZE') != os.environ['WORLD_SIZE']:
            raise UserError('--launcher mpi on several machines: set MASTER_ADDR to the first one')
        os.environ['MASTER_ADDR'] = '127.0.0.1'
    os.environ.setdefault('MASTER_PORT', os.environ.get('PORT', str(_DEFAULT_PORT)))


def on_rank_0(function: Callable[[], Any]) -> Any:
    """Run a function on rank 0 alone; all ranks get its result, or raise the UserError it raised."""
    from mmengine import dist

    answer: list = [None, None]
    if dist.get_rank() == 0:
        try:
            answer[0] = function()
        except (UserError, FileNotFoundError) as error:
            answer[1] = str(error)
    dist.broadcast_object_list(answer)
    if answer[1] is not None:
        raise UserError(answer[1])
    return answer[0]


def patience() -> datetime.timedelta:
    """How long a collective waits."""
    return datetime.timedelta(seconds=_timeout + _MARGIN)


@functools.cache
def _cpu_group(world: Any) -> Any:
    import torch.distributed as dist

    return dist.new_group(backend='gloo', timeout=patience())


def cpu_group() -> Any:
    """A process group on the CPU beside the GPUs' one; None for one process. The first call is a collective."""
    import torch.distributed as dist

    if not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    return _cpu_group(dist.group.WORLD)


def gather_differences(state: dict[str, Any]) -> list[dict[str, Any]]:
    """At rank 0: for each other rank the entries of its `state` that differ from rank 0's (a collective).

    Tensors are moved to the CPU. The list is empty on the other ranks, and where nothing differs.
    """
    import torch.distributed as dist
    from mmengine.utils import apply_to

    group = cpu_group()
    if group is None:
        return []
    state = apply_to(state, lambda part: hasattr(part, 'cpu'), lambda part: part.cpu())
    states = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(state, states, dst=0, group=group)
    own = [{key: value for key, value in other.items() if not _same(value, state[key])} for other in (states or [])[1:]]
    return own if any(own) else []


def _same(a: Any, b: Any) -> bool:
    """Whether two states of one form are equal to the bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(value, b[key]) for key, value in a.items())
    return a.equal(b) if hasattr(a, 'equal') and hasattr(b, 'equal') else a is b or a == b


def leave_processes() -> None:
    """Leave the process group at the end of a run that succeeded."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
