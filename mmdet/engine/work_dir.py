"""The folder of a run: one run at a time, and no checkpoint of an earlier run is ever lost."""

import errno
import fcntl
import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmdet.checkpoints import Checkpoint, read_checkpoint
from mmdet.config.errors import UserError, at_most
from mmdet.config.load import changed_keys
from mmdet.config.output import check_writable
from mmdet.engine.launch import on_rank_0
from mmdet.engine.saving import lacks_to_resume, newest_resumable

# Keys that say how or where a run happens, not what it computes.
_HOW = {'work_dir', 'resume', 'load_from', 'launcher', 'log_level', 'visualizer', 'vis_backends', 'env_cfg',
        'experiment_name', 'model_wrapper_cfg', 'log_processor', 'default_scope', 'randomness'}
_locks: dict[str, Any] = {}  # open lock files of work folders


def _lock(work_dir: str) -> None:
    """Keep other processes from training into the same folder, as long as this one lives (however it ends).

    Raises:
        UserError: another process does.
    """
    path = os.path.abspath(os.path.join(work_dir, '.lock'))
    file = _locks.get(path) or open(path, 'a+')
    try:
        # POSIX's kind: workers do not inherit it, and shared file systems know it
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            return  # a file system without locks
        file.seek(0)
        raise UserError(f'--work-dir {work_dir}: another run is training there ({file.read().strip()}); wait for it, '
                        'or use another folder') from error
    _locks[path] = file  # closing it would end the lock
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}')
    file.flush()


def enter_work_dir(cfg: Config, resume: bool | str) -> Checkpoint | None:
    """Make sure that training into ``cfg.work_dir`` loses nothing; returns the checkpoint to resume from, opened.

    All processes call it: rank 0 looks into the folder, and each opens the file once.

    - An earlier run with another config: refused, unless resuming.
    - An earlier run with the same config: its checkpoints are moved into its own time-stamped folder.
    - ``resume=True``: the newest checkpoint that is whole, or None where there is none.

    Raises:
        UserError: another config, another process training there, or a checkpoint that cannot be resumed.
    """
    opened = None

    def choose() -> str | None:
        nonlocal opened
        opened = _choose_checkpoint(cfg, resume)
        return None if opened is None else opened.path

    path = on_rank_0(choose)
    return opened if opened is not None or path is None else read_checkpoint(path)


def _choose_checkpoint(cfg: Config, resume: bool | str) -> Checkpoint | None:
    work_dir = cfg.work_dir
    if os.path.exists(work_dir) and not os.path.isdir(work_dir):
        raise UserError(f'--work-dir {work_dir} is a file')
    check_writable(work_dir, '--work-dir')
    _lock(work_dir)
    if isinstance(resume, str):
        checkpoint = read_checkpoint(resume)
        lacks = lacks_to_resume(checkpoint)
        if lacks:
            raise UserError(f'--resume {resume}: the file holds no state of a training with this toolbox (it lacks '
                            f'{at_most(lacks)}); to start a new training from its weights use --cfg-options '
                            f'load_from={resume}')
        return checkpoint
    if resume:
        newest = newest_resumable(work_dir)
        if newest is None:
            print(f'nothing to resume in {work_dir}: training starts from the beginning', flush=True)
        return newest
    own = os.path.join(work_dir, os.path.basename(cfg.filename or ''))
    if cfg.filename and os.path.abspath(cfg.filename) == os.path.abspath(own) and '_base_' in Path(own).read_text():
        raise UserError(f'{own} would be replaced by its resolved form; use another --work-dir')
    _set_earlier_run_aside(cfg)
    return None


def _set_earlier_run_aside(cfg: Config) -> None:
    folder = Path(cfg.work_dir)
    weights = sorted(folder.glob('*.pth')) if folder.is_dir() else []
    if not weights:
        return
    for dumped in sorted(folder.glob('*.py'), key=os.path.getmtime, reverse=True)[:1]:
        try:
            earlier = Config.fromfile(dumped, lazy_import=False).to_dict()
        except Exception:
            raise UserError(f'{folder} holds the checkpoints of a run whose config {dumped.name} cannot be '
                            'read; use --work-dir for a new folder') from None
        changed = changed_keys(earlier, cfg.to_dict(), _HOW)
        if changed:
            raise UserError(f'{folder} holds a run with another config (differs in {at_most(changed, 5)}). Use '
                            '--work-dir for a new folder, or --resume to continue that run with this config')
    runs = sorted(d for d in folder.iterdir() if d.is_dir() and d.name[:8].isdigit())
    aside = runs[-1] if runs else folder / time.strftime('%Y%m%d_%H%M%S')
    aside.mkdir(exist_ok=True)
    for path in [*weights, folder / 'last_checkpoint']:
        if path.exists():
            shutil.move(path, aside / path.name)
    print(f'{folder}: moved {len(weights)} checkpoints of the earlier run to {aside}', flush=True)
