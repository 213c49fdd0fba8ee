"""Pickles of numpy arrays (detectron2's and caffe2's model zoos), read without running any code in them."""

import pickle
from typing import Any

import numpy as np
import torch
from torch.serialization import MAGIC_NUMBER

from mmdet.config.errors import UserError

# What rebuilds an array. Everything else that a pickle asks for is refused, so nothing of its choosing is called.
_ALLOWED = {
    (module, name)
    for core in ('numpy.core', 'numpy._core')
    for module, name in (
        (f'{core}.multiarray', '_reconstruct'),
        (f'{core}.multiarray', 'scalar'),
        (f'{core}.numeric', '_frombuffer'),
    )
} | {('numpy', 'ndarray'), ('numpy', 'dtype'), ('collections', 'OrderedDict'), ('_codecs', 'encode')}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise _Refused(f'{module}.{name}')
        if (module, name) == ('_codecs', 'encode'):
            return _encode
        return super().find_class(module, name)


class _Refused(Exception):
    pass


def _encode(text: str, encoding: str) -> bytes:
    """How Python 2 wrote bytes; no other codec."""
    if encoding != 'latin1':
        raise _Refused(f'codec {encoding}')
    return text.encode('latin1')


def is_bare_pickle(path: str) -> bool:
    """Whether a file is a pickle that torch did not write."""
    with open(path, 'rb') as file:
        start = file.read(32)
    return start[:1] == b'\x80' and pickle.dumps(MAGIC_NUMBER, protocol=2)[2:-1] not in start


def read_arrays(path: str, trusted: bool = False) -> dict[str, Any]:
    """The dict that a pickle of arrays holds, its arrays as tensors; `trusted`: run the code that the file asks for.

    Raises:
        UserError: the pickle asks for anything but numpy arrays, or holds no dict.
        Exception: of any type, where the bytes are damaged.
    """
    try:
        with open(path, 'rb') as file:
            content = (pickle.Unpickler if trusted else _ArrayUnpickler)(file, encoding='latin1').load()
    except _Refused as error:
        raise UserError(
            f'{path} holds pickled Python objects ({error}), which may run any code when loaded, and is refused. If '
            'you trust its origin, convert it inside a container without network: '
            f'python tools/convert_checkpoint.py --trust {path} OUT.pth'
        ) from error
    if not isinstance(content, dict):
        raise UserError(f'{path} holds a {type(content).__name__}, not a checkpoint')
    return _tensors(content)


def _tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _tensors(item) for key, item in value.items()}
    if isinstance(value, np.ndarray) and value.dtype.kind in 'biuf':
        return torch.from_numpy(np.ascontiguousarray(value))
    return value
