"""Checkpoints that hold no pickled code, are never half written, and say what does not fit.

mmengine 0.10.7 (a) puts HistoryBuffer and numpy objects into the file, which torch >= 2.6 refuses to
load again, (b) writes over the file in place, so that a kill leaves a truncated one, and (c) loads a
checkpoint of another model with a warning. These work-arounds can go when mmengine saves plain
containers, writes through a temporary file, and reports a misfit.
"""

import functools
import os
import pickle
import re
import zipfile
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import get_external_models
from torch import Tensor, nn

from mmdet.checkpoints.pickled_arrays import is_bare_pickle, read_arrays
from mmdet.checkpoints.stand_ins import read_without_history
from mmdet.config.errors import MissingFile, UserError, at_most, one_line, say, suggest
from mmdet.config.output import write_atomically

# ---------------------------------------------------------------------- plain Python and back

_TAG = '__kind__'  # marks a dict that stands for an object weights-only loading refuses
_OBJECTS = {
    'ndarray': (np.ndarray, lambda x: torch.from_numpy(np.array(x)), lambda t: t.numpy()),
    'counter': (Counter, dict, Counter),
    'set': ((set, frozenset), list, set),
    'deque': (deque, list, deque),
    'history': (
        HistoryBuffer,
        lambda x: [torch.from_numpy(np.array(part)) for part in x.data] + [x.max_length],
        lambda v: HistoryBuffer(v[0].numpy(), v[1].numpy(), max_length=v[2]),
    ),
}


def to_plain(value: Any) -> Any:
    """The same data in tensors, numbers, strings, lists, tuples and dicts; `from_plain` restores it.

    Raises:
        TypeError: names the type of an object that has no plain form.
    """
    if isinstance(value, np.generic):  # before float, which float64 is too
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str, bytes, Tensor)):
        return value
    for kind, (types, pack, _) in _OBJECTS.items():
        if isinstance(value, types):
            if kind == 'ndarray' and value.dtype.kind not in 'biufc':
                return {_TAG: 'list', 'value': to_plain(value.tolist())}
            packed = pack(value)
            return {_TAG: kind, 'value': packed if isinstance(packed, Tensor) else to_plain(packed)}
    if isinstance(value, dict):
        return {to_plain(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(map(to_plain, value)) if isinstance(value, tuple) else list(map(to_plain, value))
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f'{type(value).__module__}.{type(value).__qualname__}')


def from_plain(value: Any) -> Any:
    """Undo `to_plain`."""
    if isinstance(value, dict):
        if _TAG in value:
            kind, packed = value[_TAG], from_plain(value['value'])
            return _OBJECTS[kind][2](packed) if kind in _OBJECTS else packed
        return {k: from_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(from_plain(v) for v in value)
    return value


# ---------------------------------------------------------------------- files


class AtomicLocalBackend(LocalBackend):
    """mmengine's storage backend for local files, writing through `write_atomically`."""

    def put(self, obj: bytes | memoryview, filepath: str | Path) -> None:
        write_atomically(filepath, obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        write_atomically(filepath, obj.encode(encoding))


def read_checkpoint(path: str) -> dict:
    """Load a file as weights only, to the CPU: no code in it is ever run.

    Raises:
        UserError: not there, damaged, or holding pickled Python objects.
    """
    return _read(path, _read_torch_file)


def read_trusted(path: str) -> dict:
    """`read_checkpoint` for a file whose code shall run; only for a sandbox."""
    return _read(path, functools.partial(torch.load, map_location='cpu', weights_only=False), trusted=True)


def _read(path: str, read_torch_file: Callable, trusted: bool = False) -> dict:
    path = os.path.expanduser(path)
    if os.path.isdir(path):
        raise UserError(f'{path} is a folder; a checkpoint file is needed')
    if not os.path.isfile(path):
        folder = os.path.dirname(path) or '.'
        found = sorted(f for f in os.listdir(folder) if f.endswith('.pth')) if os.path.isdir(folder) else []
        hint = suggest(os.path.basename(path), found, cutoff=0.7)
        there = f' Its folder holds {at_most(found, 5)}.' if found and not hint else ''
        raise MissingFile(f'checkpoint {path} not found.{hint or there}')
    try:
        _check_kind(path)
        if is_bare_pickle(path):
            return read_arrays(path, trusted)
        checkpoint = read_torch_file(path)
    except (UserError, MemoryError, PermissionError):
        raise
    except Exception as error:  # torch passes on whatever damaged bytes make its reader raise
        why = f': {one_line(error).split(". ")[0]}' if isinstance(error, RuntimeError) else ''
        raise UserError(f'{path} is damaged or no checkpoint{why}') from error
    if not isinstance(checkpoint, dict):
        raise UserError(f'{path} holds a {type(checkpoint).__name__}, not a checkpoint')
    if isinstance(checkpoint.get('meta'), dict):
        # mmengine would execute this text as a config.
        checkpoint['meta'].pop('config', None)
    return from_plain(checkpoint) if 'message_hub' in checkpoint else checkpoint


def _check_kind(path: str) -> None:
    """Refuse what does not begin as a torch file or a pickle does: an empty file, a text, a picture."""
    with open(path, 'rb') as file:
        start = file.read(2)
    if not start:
        raise UserError(f'{path} is empty')
    if start != b'PK' and start[:1] != b'\x80':
        raise UserError(f'{path} is no checkpoint: neither a file that torch wrote nor a pickle')
    if start == b'PK' and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if not any(name.endswith('data.pkl') for name in archive.namelist()):
                raise UserError(f'{path} is a zip archive that torch did not write')


def _read_torch_file(path: str) -> Any:
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        checkpoint = read_without_history(path) if zipfile.is_zipfile(path) else None
        if checkpoint is not None:
            return checkpoint
        refused = _refused_name(error)
        if refused is None:
            raise
        raise UserError(
            f'{path} holds pickled Python objects ({refused}), which may run any code when loaded, and is refused. '
            'If you trust its origin, convert it inside a container without network: '
            f'python tools/convert_checkpoint.py --trust {path} OUT.pth') from error


def _refused_name(error: BaseException) -> str | None:
    """The object that weights-only loading met and refused; None where the bytes were no pickle's."""
    found = re.search(r'GLOBAL ([\w.]+)', str(error))
    if found:
        return found.group(1)
    return 'an unknown class' if re.search(r'Unsupported class|Can only build', str(error)) else None


def _read_on_host(path: str, map_location: Any = None) -> dict:
    """mmengine's resume asks for everything on the GPU: weights twice there, Adam's step counts, which the host would
    wait for, and the log's numbers, which numpy cannot take."""
    return read_checkpoint(path)


def _load_silently(cls, filename: str, map_location: Any = None, logger: Any = None) -> dict:
    return cls._get_checkpoint_loader(filename)(filename, map_location)


def install() -> None:
    """Route mmengine's saving and loading of local files through this module."""
    register_backend('local', AtomicLocalBackend, force=True, prefixes='')
    CheckpointLoader.register_scheme(prefixes='', loader=_read_on_host, force=True)
    # mmengine's prints a line past the log, in every process; the Runner logs what it loads anyway
    CheckpointLoader.load_checkpoint = classmethod(_load_silently)


def is_resumable(checkpoint: dict) -> bool:
    """Whether a file of a Runner holds what goes on with training needs, and not weights alone."""
    return {'meta', 'optimizer', 'message_hub'} <= set(checkpoint) and {'epoch', 'iter'} <= set(checkpoint['meta'])


def newest_resumable(work_dir: str) -> str | None:
    """The newest checkpoint of `work_dir` that loads and holds an optimizer state, or None.

    `last_checkpoint` is not trusted: a killed process may have left it pointing to a damaged file.
    """
    if not os.path.isdir(work_dir):
        return None
    files = [os.path.join(work_dir, f) for f in os.listdir(work_dir) if f.endswith('.pth')]
    for path in sorted(files, key=os.path.getmtime, reverse=True):
        if os.path.basename(path).startswith('best_'):
            continue  # weights only
        try:
            if is_resumable(read_checkpoint(path)):
                return path
        except UserError as error:
            print(f'skipped: {error}', flush=True)
    return None


def remove_unfinished(work_dir: str) -> None:
    """Delete what a killed process left half written."""
    for path in Path(work_dir).glob('.*.pth.*.tmp'):
        path.unlink(missing_ok=True)


# ---------------------------------------------------------------------- weights into a model


WEIGHTS_KEYS = ('state_dict', 'model', 'blobs')  # where mmengine, detectron2 and caffe2 keep the weights in a file


def weights_of(checkpoint: dict) -> dict[str, Tensor]:
    """The state dict inside a checkpoint of any common layout, without 'module.' prefixes."""
    weights = next((checkpoint[k] for k in WEIGHTS_KEYS if isinstance(checkpoint.get(k), dict)), checkpoint)
    return {
        k.removeprefix('module.'): v
        for k, v in weights.items()
        if isinstance(k, str) and (isinstance(v, Tensor) or k.endswith('_extra_state'))
    }


def fit_weights(model: nn.Module, weights: dict[str, Any], source: str, strict: bool = True) -> dict[str, Any]:
    """Check weights against a model, and complete them so that they load without a warning.

    Args:
        strict: every weight must have its place; otherwise half of the model's keys suffice (a detector
            fine-tuned to other classes), and what does not fit keeps the model's own values.

    Returns:
        the weights to load: exactly the model's keys.

    Raises:
        UserError: names at most ten keys or shapes that do not fit, or hold no numbers.
    """
    own = model.state_dict()
    missing = [k for k in own if k not in weights and not k.endswith(('num_batches_tracked', '_extra_state'))]
    unexpected = [k for k in weights if k not in own]
    reshaped = {
        k: f'{k} (file {tuple(weights[k].shape)}, model {tuple(v.shape)})'
        for k, v in own.items()
        if isinstance(weights.get(k), Tensor) and isinstance(v, Tensor) and weights[k].shape != v.shape
    }
    kinds = {'not in the file': missing, 'not in the model': unexpected, 'shape': reshaped.values()}
    kinds = {title: keys for title, keys in kinds.items() if keys}
    problems = [f'{len(keys)} {title}: {at_most(keys, min(4, 10 // len(kinds)))}' for title, keys in kinds.items()]
    fitting = len(own) - len(missing) - len(reshaped)
    if problems and (strict or 2 * fitting < len(own)):
        raise UserError(f'{source} does not fit {type(model).__name__}: {fitting} of {len(own)} weights have '
                        f'their place. {"; ".join(problems)}. Use the config it was trained with')
    if problems:
        say(f'{source}: {fitting} of {len(own)} weights loaded, the others keep their initial values. '
            f'{"; ".join(problems)}')
    broken = [k for k, v in weights.items() if k in own and isinstance(v, Tensor) and not torch.isfinite(v).all()]
    if broken:
        raise UserError(f'{source}: NaN or infinity in {len(broken)} of {len(own)} weights ({at_most(broken, 4)}): '
                        'its training diverged. An earlier checkpoint may be whole')
    return {k: weights[k] if k in weights and k not in reshaped else v for k, v in own.items()}


def load_pretrained(uri: str) -> dict[str, Tensor]:
    """Weights to start from: ``torchvision://resnet50``, ``open-mmlab://NAME``, an http(s) address, or a local file.

    ``torchvision://NAME`` looks for torchvision's file in TORCH_HOME (default ~/.cache/torch) and
    downloads it there once. NAME may carry the weights' version: ``resnet50.imagenet1k_v2``; without one
    it means the first version, as in mmdetection's configs.

    Raises:
        UserError: names the file and the ways out.
    """
    url = _pretrained_url(uri)
    if not url.startswith(('http://', 'https://')):
        return weights_of(read_checkpoint(url.removeprefix('file://')))
    name = os.path.basename(url)
    cached = os.path.join(torch.hub.get_dir(), 'checkpoints', name)
    try:
        _download_where_missing(url, cached)
    except OSError as error:
        raise UserError(
            f'pretrained weights {uri} cannot be downloaded ({one_line(error)}). Ways out: put {name} (from '
            f'{url}) into {os.path.dirname(cached)}; or set TORCH_HOME to a folder with '
            f'hub/checkpoints/{name}; or give a local file with --cfg-options '
            'model.backbone.init_cfg.checkpoint=FILE; or train without them: '
            'model.backbone.init_cfg=None') from error
    return weights_of(read_checkpoint(cached))


def _download_where_missing(url: str, path: str) -> None:
    """Download once per machine (a collective: in a process group all ranks must come here).

    Local rank 0 downloads it and checks that it can be read, since torch takes a connection that breaks off for the
    end of the file. The others wait. Raises OSError on all ranks when one fails.
    """
    failure = None
    if int(os.environ.get('LOCAL_RANK', 0)) == 0 and not os.path.isfile(path):
        part = f'{path}.{os.getpid()}.part'
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            torch.hub.download_url_to_file(url, part, progress=False)
            read_checkpoint(part)
            os.replace(part, path)
        except Exception as error:
            failure = one_line(error).replace(part, path)
        finally:
            if os.path.exists(part):
                os.remove(part)
    if torch.distributed.is_initialized():
        failures = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(failures, failure)
        failure = next((f for f in failures if f), None)
    if failure:
        raise OSError(failure)


def _pretrained_url(uri: str) -> str:
    if uri.startswith('torchvision://'):
        return _torchvision_url(uri)
    if uri.startswith('open-mmlab://'):
        name, known = uri.removeprefix('open-mmlab://'), get_external_models()
        if name not in known:
            raise UserError(f'{uri}: no such name.{suggest(name, known)}')
        return known[name]
    return uri


def _torchvision_url(uri: str) -> str:
    import torchvision

    name, _, version = uri.removeprefix('torchvision://').partition('.')
    try:
        choices = torchvision.models.get_model_weights(name)
    except ValueError as error:
        raise UserError(f'{uri}: torchvision has no model {name!r}.'
                        f'{suggest(name, torchvision.models.list_models(torchvision.models))}') from error
    for weights in choices:
        if version.lower() in ('', weights.name.lower()):
            return weights.url
    raise UserError(f'{uri}: {name} has the weights {at_most(w.name.lower() for w in choices)}')
