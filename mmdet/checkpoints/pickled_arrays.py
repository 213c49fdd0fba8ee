"""Pickles of numpy arrays (detectron2's and caffe2's model zoos), read as data: nothing that a file names is called.

Python's own unpickler interprets the file, cut down to the instructions that such files need. Each name that they may
ask for stands for a method below, which checks what it is given and copies numbers. No function of numpy's is within a
file's reach: those trust their arguments, and a forged dtype makes them follow any pointer.
"""

import math
import os
import pickle
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.serialization import MAGIC_NUMBER

# What pickle.dumps writes, from protocol 2 on, for dicts, lists and tuples of text, numbers and arrays.
_INSTRUCTIONS = (
    'PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINSTRING SHORT_BINSTRING '
    'BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 EMPTY_DICT EMPTY_LIST EMPTY_TUPLE TUPLE '
    'TUPLE1 TUPLE2 TUPLE3 APPEND APPENDS BINGET LONG_BINGET BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE'
).split()
_NUMBERS = {'b1', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'f2', 'f4', 'f8', 'c8', 'c16'}
_KEYS = (str, bytes, int, float, bool, type(None))  # hashing nested tuples may never end


class Refused(Exception):
    """A file asks for more than data; the message names it."""


class _Type:
    """A numpy type: 'f4' and its byte order."""

    def __init__(self, code: str):
        self.code, self.order = code, '='


class _ArrayUnpickler(pickle._Unpickler):
    """The unpickler in Python: its twin in C reserves as much memory as a damaged length asks for."""

    def __init__(self, file: BinaryIO):
        super().__init__(file, encoding='latin1')  # as numpy wants Python 2's bytes to be read
        size = os.fstat(file.fileno()).st_size
        self._file_read = lambda count: file.read(min(count, size))
        self._left = 2 * size  # bytes of arrays and, up to protocol 2, of the text they are made of

    def find_class(self, module: str, name: str) -> Callable | None:
        full_name = f'{module}.{name}'.replace('numpy._core.', 'numpy.core.')
        if full_name not in self._names:
            raise Refused(full_name)
        method = self._names[full_name]
        return method and method.__get__(self)

    def _type(self, code: str, *flags: Any) -> _Type:
        if type(code) is not str:
            raise ValueError('a type without a name')
        if code not in _NUMBERS:
            raise Refused(f'an array of type {code}')
        return _Type(code)

    def _empty_array(self, *args: Any) -> Tensor:
        return torch.empty(0)  # _build fills it in place, since the file may refer to it already

    def _array(self, data: Any, kind: _Type, shape: tuple, order: str = 'C', axes: tuple | None = None) -> Tensor:
        data = data.encode('latin1') if isinstance(data, str) else data  # Python 2's
        kind = np.dtype(kind.code).newbyteorder(kind.order)
        if type(data) is not bytes or type(shape) is not tuple or math.prod(shape[:32]) * kind.itemsize != len(data):
            raise ValueError('an array of another size than its shape says')
        self._spend(len(data))
        array = np.frombuffer(bytearray(data), kind)
        array = array.astype(kind.newbyteorder('='), copy=False).reshape(shape, order='C' if axes else order)
        return torch.from_numpy(array.transpose(axes) if axes else array).contiguous()

    def _number(self, kind: _Type, data: Any) -> Any:
        return self._array(data, kind, ()).item()

    def _dict(self, pairs: list = ()) -> dict:
        return self._fill({}, [item for key, value in pairs for item in (key, value)])

    def _fill(self, target: dict, keys_and_values: list) -> dict:
        keys = keys_and_values[::2]
        if type(target) is not dict or any(type(key) not in _KEYS for key in keys):
            raise Refused('an unusual dict')
        target.update(zip(keys, keys_and_values[1::2]))
        return target

    def _bytes(self, text: str = '', encoding: str = 'latin1') -> bytes:
        """How bytes are written up to protocol 2; no other codec."""
        if encoding != 'latin1':
            raise Refused('another codec than latin1')
        self._spend(len(text))
        return text.encode('latin1')

    def _spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise Refused('more numbers than the file has bytes')

    def _build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if type(target) is Tensor:
            shape, kind, fortran, data = state[-4:]
            target.data = self._array(data, kind, shape, 'F' if fortran else 'C')
        elif type(target) is _Type:
            _, target.order, *rest = state
            if rest[:3] != [None] * 3:  # of other types, of named fields
                raise Refused('a structured array')
        else:
            raise Refused('an object with a state')

    def _byte_array(self) -> None:
        self.append(self.read(int.from_bytes(self.read(8), 'little')))

    def _set_items(self) -> None:
        items = self.pop_mark()
        self._fill(self.stack[-1], items)

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._fill(self.stack[-1], [key, value])

    def _refuse(self) -> None:
        raise Refused('neither numbers nor text')

    _names = {
        'numpy.ndarray': None,
        'numpy.dtype': _type,
        'numpy.core.multiarray._reconstruct': _empty_array,
        'numpy.core.multiarray.scalar': _number,
        'numpy.core.numeric._frombuffer': _array,
        'collections.OrderedDict': _dict,
        '_codecs.encode': _bytes,
        '__builtin__.bytes': _bytes,
    }
    dispatch = dict.fromkeys(pickle._Unpickler.dispatch, _refuse)
    dispatch |= {code: pickle._Unpickler.dispatch[code] for code in (getattr(pickle, i)[0] for i in _INSTRUCTIONS)}
    dispatch |= {
        pickle.BUILD[0]: _build,
        pickle.BYTEARRAY8[0]: _byte_array,
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
    }


def is_bare_pickle(start: bytes) -> bool:
    """Whether a file that begins so is a pickle that torch did not write."""
    return start[:1] == b'\x80' and pickle.dumps(MAGIC_NUMBER, protocol=2)[2:-1] not in start


def read_arrays(file: BinaryIO) -> Any:
    """What a pickle of arrays holds, its arrays as tensors.

    Raises:
        Refused: it asks for anything but numbers, text and arrays of numbers.
        Exception: of any type, where the bytes are damaged.
    """
    return _ArrayUnpickler(file).load()


def run_pickle(file: BinaryIO) -> Any:
    """The same, and whatever else the file asks for is run; only for a sandbox."""
    return _tensors(pickle.Unpickler(file, encoding='latin1').load())


def _tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _tensors(item) for key, item in value.items()}
    if isinstance(value, np.ndarray) and value.dtype.kind in 'biuf':
        return torch.from_numpy(np.ascontiguousarray(value))
    return value
