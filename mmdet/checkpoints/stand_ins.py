"""Checkpoints of mmengine's own Runner: their weights without their history objects.

Beside weights such a file (mmdetection 3's epoch_12.pth) holds HistoryBuffer and numpy objects, which weights-only
loading refuses. Here each of a few known names is answered by an empty object, so that nothing of the file's choosing
is ever called. Can go when mmengine saves plain containers.
"""

import pickle
from typing import Any, BinaryIO

import torch

from mmdet.checkpoints.plain import from_plain

_NAMES = [
    'mmengine.logging.history_buffer.HistoryBuffer',
    'builtins.getattr',  # how HistoryBuffer's bound methods are pickled
    'numpy.ndarray',
    'numpy.dtype',
    '_codecs.encode',
    *(f'numpy.{core}.multiarray.{name}' for core in ('core', '_core') for name in ('_reconstruct', 'scalar')),
]


class _StandIn:
    """Takes whatever it is given and keeps nothing."""

    def __new__(cls, *args: Any) -> '_StandIn':
        return object.__new__(cls)

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read_without_history(file: BinaryIO) -> dict | None:
    """State dict and meta of a Runner's file; None where it asks for any other name, or torch is older than 2.6."""
    file.seek(0)
    try:
        with torch.serialization.safe_globals([(_StandIn, name) for name in _NAMES]):
            checkpoint = torch.load(file, map_location='cpu', weights_only=True)
    except (pickle.UnpicklingError, TypeError, AttributeError, RuntimeError):
        return None
    if not isinstance(checkpoint, dict) or 'state_dict' not in checkpoint:
        return None
    meta = checkpoint.get('meta')
    return dict(meta=from_plain(meta, _StandIn) if isinstance(meta, dict) else {}, state_dict=checkpoint['state_dict'])
