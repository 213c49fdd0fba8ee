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
from mmdet.engine.saving import lacks_to_resume, newest_resumable, numbered

# Keys that say how or where a run happens, not what it computes.
_HOW = {'work_dir', 'resume', 'load_from', 'launcher', 'log_level', 'visualizer', 'vis_backends', 'env_cfg',
        'experiment_name', 'model_wrapper_cfg', 'log_processor', 'default_scope', 'randomness'}
_locks: dict[str, Any] = {}  # open lock files of work folders
INTERRUPTED = 'interrupted.pth'  # what a run saves that a signal stops


def _lock(folder: str, option: str) -> None:
    """Keep other processes from training into the same folder, as long as this one lives (however it ends).

    Raises:
        UserError: another process does.
    """
    path = os.path.abspath(os.path.join(folder, '.lock'))
    file = _locks.get(path) or open(path, 'a+')
    try:
        # POSIX's kind: workers do not inherit it, and shared file systems know it
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            return  # a file system without locks
        file.seek(0)
        raise UserError(f'{option} {folder}: another run is training there ({file.read().strip()}); wait for it, '
                        'or use another folder') from error
    _locks[path] = file  # closing it would end the lock
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}')
    file.flush()


def checkpoint_folder(work_dir: str, out_dir: str | None) -> str:
    """Where CheckpointHook writes: the work folder, or one of its name in the hook's `out_dir`."""
    if out_dir is None or os.path.abspath(out_dir) == os.path.abspath(work_dir):
        return work_dir
    return os.path.join(out_dir, os.path.basename(work_dir.rstrip(os.sep)))


def enter_work_dir(cfg: Config, resume: bool | str) -> Checkpoint | None:
    """Make sure that training into ``cfg.work_dir`` loses nothing; returns the checkpoint to resume from, opened.

    All processes call it: rank 0 looks into the folder, and each opens the file once.

    - An earlier run with another config: refused, unless resuming.
    - An earlier run with the same config: its checkpoints are moved into its own time-stamped folder.
    - ``resume=True``: the newest checkpoint that is whole, or None where there is none. Newer checkpoints, and those of
      another run than the one to resume, are moved too.

    Raises:
        UserError: another config, another process training there, or no checkpoint that can be resumed.
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
    _lock(work_dir, '--work-dir')
    out_dir = ((cfg.get('default_hooks') or {}).get('checkpoint') or {}).get('out_dir')
    if out_dir and '://' in str(out_dir):
        raise UserError(f'default_hooks.checkpoint.out_dir={out_dir}: checkpoints are written to local folders alone, '
                        'where a run can be resumed from them; copy them elsewhere afterwards')
    folder = checkpoint_folder(work_dir, out_dir)
    if folder != work_dir:
        check_writable(folder, 'default_hooks.checkpoint.out_dir')
        _lock(folder, 'default_hooks.checkpoint.out_dir')
    checkpoint = None
    if isinstance(resume, str):
        checkpoint = read_checkpoint(resume)
        lacks = lacks_to_resume(checkpoint)
        if lacks:
            raise UserError(f'--resume {resume}: the file holds no state of a training with this toolbox (it lacks '
                            f'{at_most(lacks)}); to start a new training from its weights use --cfg-options '
                            f'load_from={resume}')
    elif resume:
        checkpoint = newest_resumable(folder)
        if checkpoint is None:
            print(f'nothing to resume in {folder}: training starts from the beginning', flush=True)
            return None
    if checkpoint is not None and os.path.dirname(os.path.abspath(checkpoint.path)) == os.path.abspath(folder):
        _set_aside(Path(folder), _newer(Path(folder), Path(checkpoint.path)))
        return checkpoint
    own = os.path.join(work_dir, os.path.basename(cfg.filename or ''))
    if cfg.filename and os.path.abspath(cfg.filename) == os.path.abspath(own) and '_base_' in Path(own).read_text():
        raise UserError(f'{own} would be replaced by its resolved form; use another --work-dir')
    if _checkpoints(folder):
        _check_same_config(cfg)
        _set_aside(Path(folder), [*_checkpoints(folder), Path(work_dir, 'last_checkpoint')])
    return checkpoint


def _checkpoints(folder: str) -> list[Path]:
    return sorted(Path(folder).glob('*.pth'))


def _newer(folder: Path, resumed: Path) -> list[Path]:
    """Checkpoints that the resumed run would write over: those of a higher number, or, where they count something
    else, of a later time. The best so far may be written after an epoch's."""
    counted, done = numbered(resumed)

    def ahead(path: Path) -> bool:
        unit, number = numbered(path)
        if number < 0 and path.name != INTERRUPTED:
            return False
        if done >= 0 and number >= 0 and unit.endswith(counted):
            return number > done
        return path.lstat().st_mtime > resumed.lstat().st_mtime and not (done < 0 and path.name.startswith('best_'))

    return list(filter(ahead, _checkpoints(str(folder))))


def _check_same_config(cfg: Config) -> None:
    folder = Path(cfg.work_dir)
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


def _set_aside(folder: Path, paths: list[Path]) -> None:
    """Move checkpoints into the time-stamped folder of the run that wrote them, or a new one."""
    paths = [path for path in paths if path.exists()]
    if not paths:
        return
    runs = sorted(d for d in folder.iterdir() if d.is_dir() and d.name[:8].isdigit())
    aside = runs[-1] if runs else folder / time.strftime('%Y%m%d_%H%M%S')
    while any((aside / path.name).exists() for path in paths):
        aside = aside.with_name(f'{aside.name}_earlier')
    aside.mkdir(exist_ok=True)
    for path in paths:
        shutil.move(path, aside / path.name)
    names = [path.name for path in paths if path.suffix == '.pth']
    print(f'{folder}: moved {len(names)} checkpoints of the earlier run to {aside}: {at_most(names, 4)}', flush=True)
