"""Bare pickles: what numpy and Python 2 wrote is read, and nothing that a forged one asks for is called."""

import pickle
import random
import resource
import struct
import subprocess
import sys
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from mmdet.checkpoints import read_checkpoint
from mmdet.checkpoints.pickled_arrays import Refused, read_arrays
from mmdet.config.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def read(data: bytes, folder: Path) -> dict:
    (folder / 'x.pkl').write_bytes(data)
    return read_checkpoint(str(folder / 'x.pkl'))


# ------------------------------------------------------------------ honest files


def arrays() -> dict[str, np.ndarray]:
    count = np.arange(24)
    every = {code: count.astype(code).reshape(2, 3, 4) for code in '? i1 i2 i4 i8 u1 f2 f4 f8 c8 >f4 >i8'.split()}
    whole = count.reshape(2, 3, 4).astype(np.float32)
    return dict(every, scalar=np.array(2.5), empty=np.zeros((0, 3)), fortran=np.asfortranarray(whole),
                transposed=whole.transpose(1, 2, 0), part=whole[:, ::2], negative=whole[::-1])  # fmt: skip


@pytest.mark.parametrize('protocol', range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_of_every_layout_are_numpys(protocol, tmp_path):
    given = arrays()
    numbers = dict(lr=np.float64(0.5), iter=np.int64(7), done=np.bool_(True))
    content = dict(model=OrderedDict(given), again=given['f4'], numbers=numbers, names=['a', ('b', 1)], none=None)
    found = read(pickle.dumps(dict(content, __author__='Detectron2 Model Zoo'), protocol), tmp_path)
    assert list(found['model']) == list(given)
    for name, array in given.items():
        tensor = found['model'][name]
        assert tensor.is_contiguous() and tensor.numpy().dtype == array.dtype.newbyteorder('='), name
        assert tensor.shape == array.shape and np.array_equal(tensor.numpy(), array), name
    assert found['again'] is found['model']['f4']
    assert found['numbers'] == numbers and found['names'] == ['a', ('b', 1)] and found['none'] is None


def by_python_2(name: str, array: np.ndarray, ordered: bool = False) -> bytes:
    """dict(blobs={name: array}) as cPickle wrote it: byte strings, numpy.core, flags as numbers."""

    def text(value: bytes) -> bytes:
        return b'U' + bytes([len(value)]) + value if len(value) < 256 else b'T' + struct.pack('<i', len(value)) + value

    shape = b'(' + b''.join(b'K' + bytes([n]) for n in array.shape) + b't'
    kind = b'cnumpy\ndtype\n' + text(array.dtype.str[1:].encode()) + b'K\x00K\x01\x87R'
    kind += b'(K\x03' + text(b'<') + b'NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb'
    shell = b'cnumpy.core.multiarray\n_reconstruct\nq\x05cnumpy\nndarray\nK\x00\x85' + text(b'b') + b'\x87Rq\x06'
    value = shell + b'(K\x01' + shape + kind + b'\x89' + text(array.tobytes()) + b'tb'
    blobs = b'}' + text(name) + value + b's'
    if ordered:  # its items are given to the constructor
        blobs = b'ccollections\nOrderedDict\n](]' + b'(' + text(name) + value + b'ee\x85R'
    return b'\x80\x02}' + text(b'blobs') + blobs + b's.'


@pytest.mark.parametrize('ordered', [False, True])
def test_python_2s_files_are_numpys(ordered, tmp_path):
    array = np.random.RandomState(0).randn(3, 40).astype(np.float32)
    data = by_python_2(b'conv1_w', array, ordered)
    oracle = pickle.loads(data, encoding='latin1')
    found = read(data, tmp_path)
    assert type(oracle['blobs']) is (OrderedDict if ordered else dict)
    assert np.array_equal(found['blobs']['conv1_w'].numpy(), oracle['blobs']['conv1_w'])
    assert np.array_equal(oracle['blobs']['conv1_w'], array)


def test_what_is_no_number_is_named(tmp_path):
    structured = np.zeros(2, [('a', 'f4')])
    for value, named in (
        (np.array([{}, []], dtype=object), 'type O8'), (np.array(['a']), 'type U1'), (structured, 'type V4'),
        (Path('a'), 'pathlib.*Path'), ({'a', 'b'}, 'neither numbers nor text'),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f'holds pickled Python objects .*{named}.* and is refused'):
            read(pickle.dumps(dict(model=value), 4), tmp_path)


# ------------------------------------------------------------------ forged files


def text(value: str) -> bytes:
    return b'X' + struct.pack('<I', len(value.encode())) + value.encode()


def integer(value: int) -> bytes:
    return b'J' + struct.pack('<i', value)


def name(module: str, attribute: str) -> bytes:
    return f'c{module}\n{attribute}\n'.encode()


def data_of(value: bytes) -> bytes:
    return b'C' + bytes([len(value)]) + value


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + b'(' + b''.join(arguments) + b't' + b'R'


def file_of(value: bytes) -> bytes:
    return b'\x80\x04}' + text('model') + value + b's.'


POINTER = data_of(b'\x41\x41\x41\x41\x41\x41\x00\x00')
DTYPE = call(name('numpy', 'dtype'), text('O8'), b'\x89', b'\x88')
STATE = b'(' + integer(3) + text('|') + b'NNN' + integer(-1) + integer(-1) + integer(0) + b't'  # no object flag
FORGED = DTYPE + STATE + b'b'
NAMED = b'(' + integer(3) + text('<') + b'N(' + text('a') + b't}' + text('a') + FORGED + integer(0) + b'\x86s'
NAMED += integer(8) + integer(1) + integer(0) + b't'
SHELL = call(name('numpy.core.multiarray', '_reconstruct'), name('numpy', 'ndarray'), b'(K\x00t', data_of(b'b'))
SHAPE = b'(K\x01t'
ARRAY = SHELL + b'(' + integer(1)
FLOAT = call(name('numpy', 'dtype'), text('f8'), b'\x89', b'\x88')
ATTACKS = {
    'a scalar of pointers': call(name('numpy.core.multiarray', 'scalar'), FORGED, POINTER),
    'a buffer of pointers': call(name('numpy.core.numeric', '_frombuffer'), POINTER, FORGED, SHAPE, text('C')),
    'an array of pointers': ARRAY + SHAPE + FORGED + b'\x89' + POINTER + b'tb',
    'an array over a buffer': call(name('numpy', 'ndarray'), SHAPE, FORGED, POINTER),
    'fields of pointers': call(name('numpy.core.multiarray', 'scalar'), FLOAT + NAMED + b'b', POINTER),
    'a new object': name('numpy', 'ndarray') + b'(' + SHAPE + FORGED + POINTER + b't\x81',
    'an offset': call(name('numpy', 'ndarray'), SHAPE, FLOAT, POINTER, integer(1 << 30)),
    'a state for a function': name('numpy.core.multiarray', 'scalar') + b'N}' + text('__code__') + b'Ns\x86b',
    'a state for a class': name('collections', 'OrderedDict') + b'N}' + text('update') + FLOAT + b's\x86b',
    'another function': call(name('numpy', 'frombuffer'), POINTER),
    'another codec': call(name('_codecs', 'encode'), text('a'), text('rot13')),
    'an array too large': ARRAY + b'(' + integer(1 << 30) + b't' + FLOAT + b'\x89' + POINTER + b'tb',
    'a negative shape': ARRAY + b'(' + integer(-1) + b't' + FLOAT + b'\x89' + POINTER + b'tb',
    'a shape of fractions': call(name('numpy.core.numeric', '_frombuffer'), POINTER, FLOAT,
                                 b'(G' + struct.pack('>d', 1.0) + b't', text('C')),
    'a number as data': call(name('numpy.core.multiarray', 'scalar'), FLOAT, integer(8)),
    'an extension': b'\x82\x01',
    'a persistent object': text('x') + b'Q',
    'a long length of bytes': b'\x8e' + struct.pack('<Q', 1 << 40),
    'a long length of a bytearray': b'\x96' + struct.pack('<Q', 1 << 40),
    'a long length of text': b'\x8d' + struct.pack('<Q', 1 << 40),
    'a long frame': b'\x95' + struct.pack('<Q', 1 << 40),
    'a key that is hashed for ever': b'}' + b')' + b'q\x00h\x00\x86' * 60 + b'Ns',
    'a type that is hashed for ever': call(name('numpy', 'dtype'), b')' + b'q\x00h\x00\x86' * 60),
}  # fmt: skip


def attack() -> None:
    """Read every forged file, in a process of its own: one that succeeds ends it."""
    path = Path('forged.pkl')
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for title, value in ATTACKS.items():
        path.write_bytes(file_of(value))
        start = time.monotonic()
        try:
            found = read_checkpoint(str(path))
        except UserError as error:
            assert '\n' not in str(error)
        else:
            raise AssertionError(f'{title}: {found}')
        assert time.monotonic() - start < 2, title
    # memo of any number costs nothing
    path.write_bytes(file_of(b'Nr' + struct.pack('<I', (1 << 31) - 1)))
    assert read_checkpoint(str(path)) == dict(model=None)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB
    print('done')


CONSTANTS = [
    b'N', b'\x88', b')', b']', b'}', b'(', integer(0), integer(1), integer(3), integer(-1), integer(1 << 30), SHAPE,
    *(text(value) for value in ('f8', 'O8', 'O', 'V8', 'M8', '|', '<', '=', 'C', 'F', 'latin1', 'a', '__setstate__')),
    data_of(b''), data_of(b'b'), data_of(b'\x01'), POINTER, data_of(bytes(64)), FLOAT, FORGED, DTYPE, SHELL, STATE,
]  # fmt: skip
NAMES = [
    name('numpy', 'ndarray'), name('numpy', 'dtype'), name('numpy.core.multiarray', '_reconstruct'),
    name('numpy._core.multiarray', 'scalar'), name('numpy._core.numeric', '_frombuffer'), name('_codecs', 'encode'),
    name('collections', 'OrderedDict'), name('__builtin__', 'bytes'),
]  # fmt: skip
FOREIGN = [name('os', 'getpid'), name('builtins', 'getattr'), name('numpy', 'frombuffer')]


def program(rng: random.Random) -> bytes:
    """A forged file: calls of the names that are allowed, and now and then of others, on whatever lies on the stack."""
    out = b'\x80\x04'
    for place in range(rng.randint(1, 25)):
        kind = rng.random()
        if kind < 0.4:
            function = rng.choice(NAMES if rng.random() < 0.95 else FOREIGN)
            out += call(function, *(rng.choice(CONSTANTS) for _ in range(rng.randint(0, 5))))
        elif kind < 0.6:
            out += rng.choice(CONSTANTS)
        elif kind < 0.75:
            out += b'(' + b''.join(rng.choice(CONSTANTS) for _ in range(rng.randint(0, 8))) + b't'
        elif kind < 0.9:
            out += rng.choice([b'b', b'R', b's', b'u', b'a', b'e', b'\x86', b'\x81', b'\x92', b'0', b'2'])
        else:
            out += b'\x94' if rng.random() < 0.5 else b'h' + bytes([rng.randrange(place + 1)])
    return out + b'.'


def only_data(value, seen: set) -> bool:
    """Whether a result holds no object that could be called or that numpy made."""
    if id(value) in seen:
        return True
    seen.add(id(value))
    if type(value) in (dict, list, tuple):
        parts = [*value, *value.values()] if type(value) is dict else value
        return all(only_data(part, seen) for part in parts)
    ours = type(value).__module__ in ('builtins', 'torch', 'mmdet.checkpoints.pickled_arrays')
    return ours and type(value) is not type


def fuzz(count: int) -> None:
    rng = random.Random(0)
    whole = [pickle.dumps(dict(model=arrays()), protocol) for protocol in range(2, 6)]
    whole.append(by_python_2(b'conv1_w', np.ones(30, np.float32)))
    path, refused = Path('forged.pkl'), 0
    for number in range(count):
        if number % 2:
            data = program(rng)
        else:
            data = bytearray(rng.choice(whole))
            for _ in range(rng.choice([1, 3, 20])):
                data[rng.randrange(2, len(data))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            with open(path, 'rb') as file:
                found = read_arrays(file)
        except Refused:
            refused += 1
        except Exception:
            continue
        else:
            assert only_data(found, set()), data
    assert refused > count // 20
    print('done')


def child(code: str, folder: Path) -> subprocess.CompletedProcess:
    path = [str(ROOT), str(Path(__file__).parent)]
    code = f'import sys; sys.path[:0] = {path!r}; import test_pickled_arrays as forged; {code}'
    command = [sys.executable, '-X', 'faulthandler', '-c', code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)


def test_forged_files_are_refused(tmp_path):
    ended = child('forged.attack()', tmp_path)
    assert ended.stdout == 'done\n' and ended.returncode == 0, ended.stderr


@pytest.mark.parametrize('count', [2_000, pytest.param(50_000, marks=pytest.mark.slow)])
def test_no_forged_file_calls_anything(count, tmp_path):
    ended = child(f'forged.fuzz({count})', tmp_path)
    assert ended.stdout == 'done\n' and ended.returncode == 0, ended.stderr


def test_numbers_are_bounded_by_the_file(tmp_path):
    again = call(name('numpy.core.numeric', '_frombuffer'), b'h\x00', FLOAT, b'(K\x1et', text('C'))
    data = file_of(b'(' + data_of(bytes(240)) + b'q\x00' + again * 100 + b't')
    with pytest.raises(UserError, match='more numbers than the file has bytes'):
        read(data, tmp_path)
