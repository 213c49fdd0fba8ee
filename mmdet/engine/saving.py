"""What mmengine's Runner writes and reads, made safe: plain data, never half written, read by `mmdet.checkpoints`.

mmengine 0.10.7 (a) puts HistoryBuffer and numpy objects into its files, which torch >= 2.6 refuses to load again, (b)
writes over a file in place, so that a kill leaves a truncated one, and (c) reads with torch.load, to the GPU. These
work-arounds can go when it saves plain containers, writes through a temporary file, and leaves reading to us.
"""

import functools
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from torch import Tensor

from mmdet.checkpoints import Checkpoint, load_pretrained, read_checkpoint
from mmdet.checkpoints.plain import KINDS, marked, to_plain
from mmdet.config.errors import UserError, at_most, one_line, say
from mmdet.config.output import write_atomically

KINDS['history'] = (
    HistoryBuffer,
    lambda x: [torch.from_numpy(np.array(part)) for part in x.data] + [x.max_length],
    lambda v: HistoryBuffer(v[0].numpy(), v[1].numpy(), max_length=v[2]),
)


class AtomicLocalBackend(LocalBackend):
    """mmengine's storage backend for local files, writing through `write_atomically`."""

    def put(self, obj: bytes | memoryview, filepath: str | Path) -> None:
        write_atomically(filepath, obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        write_atomically(filepath, obj.encode(encoding))


def _load(cls, filename: str | Checkpoint, map_location: Any = None, logger: Any = None) -> Checkpoint:
    """What mmengine is to load, which may be open already. Not to `map_location`: it asks for everything on the GPU,
    weights twice there, Adam's step counts, which the host would wait for, and the log's numbers, which numpy cannot
    take. Nor with its line for each process, past the log: the Runner logs what it loads."""
    if not isinstance(filename, Checkpoint):
        return load_pretrained(filename)
    opened = Checkpoint(filename, filename.path)
    filename.clear()  # the Runner keeps what it was asked to load until it ends
    return opened


def install() -> None:
    """Route mmengine's saving and loading through this module."""
    register_backend('local', AtomicLocalBackend, force=True, prefixes='')
    CheckpointLoader.load_checkpoint = classmethod(_load)


def make_plain(checkpoint: dict) -> None:
    """Turn what a Runner is about to save into plain data, in place, and mark it as ours.

    Raises:
        UserError: something beside the log's numbers has no plain form.
    """
    checkpoint['meta'] = marked(checkpoint['meta'])
    info = checkpoint['message_hub']['runtime_info']
    for key in list(info):
        try:
            info[key] = to_plain(info[key])
        except TypeError as error:
            del info[key]
            say(f'checkpoint: {key!r} of the message hub is left out, {error} has no plain form')
    for state in _states(checkpoint.get('param_schedulers')):
        for key in [key for key, value in state.items() if callable(value)]:
            del state[key]  # OneCycleLR's: the class makes it anew
    for key, value in checkpoint.items():
        if key != 'state_dict':  # keeps its _metadata
            try:
                checkpoint[key] = to_plain(value)
            except TypeError as error:
                raise UserError(f'checkpoint: {key!r} holds a {error}, which has no plain form') from error


def _states(schedulers: list | dict | None) -> list[dict]:
    """The states of one optimizer's schedulers, or of several optimizers'."""
    lists = schedulers.values() if isinstance(schedulers, dict) else [schedulers or []]
    return [state for states in lists for state in states]


# ---------------------------------------------------------------------- resuming

# What is read of a file when a run resumes, and what it has to be.
_RUN = {
    'state_dict': dict, 'optimizer': dict, 'message_hub.log_scalars': dict, 'message_hub.runtime_info': dict,
    'message_hub.resumed_keys': dict, 'meta.epoch': int, 'meta.iter': int,
}  # fmt: skip
_MAY_BE_THERE = {'param_schedulers': (list, dict), 'cbn': dict, 'rank_cbn': (list, tuple), 'rank_buffers': list,
                 'ema_state_dict': dict}
_INFO = {'best_ckpt': str, 'last_ckpt': str, 'best_score': (int, float, Tensor), 'early_stopping/': (list, tuple)}


def lacks_to_resume(checkpoint: dict) -> list[str]:
    """What a run cannot be continued without and the file does not hold; weights alone lack most of it."""

    def held(place: str) -> Any:
        return functools.reduce(lambda part, key: part.get(key) if isinstance(part, dict) else None, place.split('.'),
                                checkpoint)

    lacks = [place for place, kind in _RUN.items() if not isinstance(held(place), kind)]
    lacks += [place for place, kind in _MAY_BE_THERE.items()
              if place in checkpoint and not isinstance(checkpoint[place], kind)]
    least = {'meta.epoch': 0, 'meta.iter': 0, 'meta.iterations_per_epoch': 1, 'meta.seed': 0}
    lacks += [place for place, lowest in least.items() if place not in lacks and held(place) is not None
              and not (isinstance(held(place), int) and lowest <= held(place) < 2**32)]  # a seed of numpy's
    lacks += [f'message_hub.runtime_info.{key}' for key, value in (held('message_hub.runtime_info') or {}).items()
              for start, kind in _INFO.items() if str(key).startswith(start) and not isinstance(value, kind)]
    lacks += ['optimizer'] * ('optimizer' not in lacks and not all(map(_has_form, _optimizers(held('optimizer')))))
    schedulers = 'param_schedulers' not in lacks and _states(held('param_schedulers'))
    return lacks + ['param_schedulers'] * (not all(isinstance(state, dict) for state in schedulers or ()))


def _optimizers(held: dict) -> list:
    """The state of one optimizer, or those of several by name."""
    return [held] if 'state' in held else list(held.values())


def _has_form(optimizer: Any) -> bool:
    """Whether it is built as a torch optimizer's state dict: weights are numbered through the groups."""
    groups, state = (optimizer.get(key) if isinstance(optimizer, dict) else None for key in ('param_groups', 'state'))
    if not isinstance(groups, list) or not isinstance(state, dict):
        return False
    if not groups or not all(isinstance(group, dict) and isinstance(group.get('params'), list) for group in groups):
        return False
    numbers = [number for group in groups for number in group['params']]
    return (numbers == list(range(len(numbers))) and state.keys() <= set(numbers)
            and all(isinstance(of_weight, dict) for of_weight in state.values()))


def numbered(path: Path) -> tuple[str, int]:
    """('epoch_', 12) of epoch_12.pth: what is counted, and how much of it; a file without a number has -1."""
    found = re.fullmatch(r'(.*?)(\d+)\.pth', path.name)
    return (found[1], int(found[2])) if found else (path.name, -1)


def _newest_first(paths: list[Path]) -> list[Path]:
    """By their times, and by their numbers where they have such: a copied folder has the times of copying."""
    times: dict[str, float] = {}
    for path in paths:
        times[numbered(path)[0]] = max(times.get(numbered(path)[0], 0), path.lstat().st_mtime)
    return sorted(paths, key=lambda path: (times[numbered(path)[0]], numbered(path)[1]), reverse=True)


def newest_resumable(work_dir: str) -> Checkpoint | None:
    """The newest checkpoint of `work_dir` that is whole and can be resumed, opened; None where there is none.

    Newer ones are named with the reason. `last_checkpoint` is not trusted: a killed process may have left it pointing
    to a damaged file.

    Raises:
        UserError: there are checkpoints, and none can be resumed.
    """
    files = _newest_first(list(Path(work_dir).glob('*.pth')))
    for path in (str(path) for path in files if not path.name.startswith('best_')):  # these: weights alone
        try:
            checkpoint = read_checkpoint(path)
        except (UserError, OSError) as error:
            print(f'skipped: {one_line(error)}', flush=True)
            continue
        lacks = lacks_to_resume(checkpoint)
        if not lacks:
            return checkpoint
        print(f'skipped: {path} cannot be resumed, it lacks {at_most(lacks)}', flush=True)
    if files:
        raise UserError(f'--resume: none of the {len(files)} checkpoints in {work_dir} can be resumed. To start a new '
                        'training use another --work-dir, so that they are kept; from the weights of one add '
                        '--cfg-options load_from=FILE')
    return None


def remove_unfinished(work_dir: str) -> None:
    """Delete what a killed process left half written."""
    for path in Path(work_dir).glob('.*.pth.*.tmp'):
        path.unlink(missing_ok=True)
