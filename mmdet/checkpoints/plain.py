"""What is written into a file: plain containers, numbers and tensors, and a mark that says that we wrote it.

mmengine 0.10.7 puts pickled objects into its files, which torch >= 2.6 refuses to load again.
"""

import io
from collections import Counter, deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmdet.version import __version__

_TAG = '__kind__'  # marks a dict that stands for an object weights-only loading refuses
# kind: (types, object -> plain, plain -> object); mmdet.engine.saving adds mmengine's
KINDS = {
    'ndarray': (np.ndarray, lambda x: torch.from_numpy(np.array(x)), lambda t: t.numpy()),
    'counter': (Counter, dict, Counter),
    'set': ((set, frozenset), list, set),
    'deque': (deque, list, deque),
}


def to_plain(value: Any, done: dict | None = None) -> Any:
    """The same data in tensors, numbers, strings, lists, tuples and dicts; `from_plain` restores it.

    Raises:
        TypeError: names the type of an object that has no plain form.
    """
    if isinstance(value, np.generic):  # before float, which float64 is too
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str, bytes, Tensor)):
        return value
    if isinstance(value, Path):
        return str(value)
    done = {} if done is None else done  # what a file refers to many times is visited once
    if id(value) not in done:
        done[id(value)] = value, _packed(value, done)
    return done[id(value)][1]


def _packed(value: Any, done: dict) -> Any:
    for kind, (types, pack, _) in KINDS.items():
        if isinstance(value, types):
            if kind == 'ndarray' and value.dtype.kind not in 'biufc':
                return {_TAG: 'list', 'value': to_plain(value.tolist(), done)}
            return {_TAG: kind, 'value': to_plain(pack(value), done)}
    if isinstance(value, dict):
        return {to_plain(k, done): to_plain(v, done) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return (tuple if isinstance(value, tuple) else list)(to_plain(v, done) for v in value)
    raise TypeError(f'{type(value).__module__}.{type(value).__qualname__}')


def from_plain(value: Any, without: type | tuple = (), done: dict | None = None) -> Any:
    """Undo `to_plain`, leaving out what is `without`'s; a kind that is not in KINDS stays packed."""
    if not isinstance(value, (dict, list, tuple)):
        return value
    done = {} if done is None else done
    if id(value) not in done:
        if isinstance(value, dict) and _TAG in value:
            packed = from_plain(value['value'], without, done)
            result = KINDS[value[_TAG]][2](packed) if value[_TAG] in KINDS else packed
        elif isinstance(value, dict):
            result = {k: from_plain(v, without, done) for k, v in value.items() if not isinstance(v, without)}
        else:
            result = type(value)(from_plain(v, without, done) for v in value if not isinstance(v, without))
        done[id(value)] = value, result
    return done[id(value)][1]


# ---------------------------------------------------------------------- what a file says about itself

_MARK = 'mmdet with CBN'
_PUBLISHED = (
    'mmdet_version', 'mmcv_version', 'mmengine_version', 'epoch', 'iter', 'dataset_meta', 'CLASSES', 'conventions',
    'converted_from',
)  # fmt: skip


def marked(meta: dict[str, Any]) -> dict[str, Any]:
    """`meta` with the mark of this toolbox: the file's names are its own, whatever they look like."""
    return {**meta, 'saved_by': f'{_MARK} {__version__}'}


def is_marked(meta: dict[str, Any]) -> bool:
    return str(meta.get('saved_by', '')).startswith(_MARK)


def plain_meta(meta: dict[str, Any]) -> dict[str, Any]:
    """What of `meta` may be published: versions and classes, no config, seed, host or path."""
    kept = {}
    for key in _PUBLISHED:
        try:
            kept.update({key: to_plain(meta[key])} if key in meta else {})
        except TypeError:  # nothing that we or mmdetection write
            continue
    return kept


def to_bytes(content: dict[str, Any]) -> bytes:
    """A file of this content, as torch writes it."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()
