"""Processes that load data: signals are the business of the process that they load for.

A signal to the whole group (scancel, systemd, a terminal) reaches them too. They would end at once, and the iteration
that is to be finished and saved would fail without its data.
"""

import multiprocessing
import os
import signal
import sys
import threading
from types import TracebackType
from typing import Any

from mmengine.dataset import worker_init_fn
from mmengine.registry import FUNCTIONS

_SECONDS = 1  # between looks at whether the parent is there


def start_worker(worker_id: int, *, num_workers: int, rank: int, seed: int, then: dict | None = None) -> None:
    """Called in a new worker: leave signals alone, then mmengine's seeding or the config's own `worker_init_fn`."""
    _leave_signals_to(multiprocessing.parent_process())
    sys.excepthook = _print_but_lost_connections
    # the terminal's live line is the parent's: what a forked worker prints must not draw it
    sys.stdout, sys.stderr = (getattr(stream, 'rich_proxied_file', stream) for stream in (sys.stdout, sys.stderr))
    if then is None:
        worker_init_fn(worker_id, num_workers=num_workers, rank=rank, seed=seed)
    else:
        options = {key: value for key, value in then.items() if key != 'type'}
        function = then['type']
        (FUNCTIONS.get(function) if isinstance(function, str) else function)(worker_id, **options)


def _print_but_lost_connections(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A batch's memory was asked for by a process that is gone. One that is there says itself what it has lost."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def _leave_signals_to(parent: Any) -> None:
    """Ignore Ctrl-C, a closed terminal, and SIGTERM from anyone but `parent`; end when that has gone.

    torch's watchdog ends the loop of such a worker alone: it then waits for a pipe to take its last batches, which
    nobody empties and whose other end it holds itself.
    """
    if parent is None or not hasattr(signal, 'sigtimedwait'):
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # for this thread and those it starts
    started_by = os.getppid()  # the parent, or a server that forks for it

    def wait() -> None:
        while os.getppid() == started_by:
            sent = signal.sigtimedwait({signal.SIGTERM}, _SECONDS)
            if sent is not None and sent.si_pid in (parent.pid, os.getpid()):
                break
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
