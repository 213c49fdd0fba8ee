"""A damaged file is refused in one line, or loads to the very same weights."""

import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from mmdet.checkpoints import read_checkpoint
from mmdet.config.errors import UserError

CONTENT = dict(meta=dict(epoch=3, classes=('a', 'b')), state_dict={'a.weight': torch.arange(40.0), 'b': torch.ones(3)},
               optimizer=dict(lr=0.1))  # fmt: skip


def same(a, b) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def flipped(whole: bytes, bit: int) -> bytes:
    data = bytearray(whole)
    data[bit // 8] ^= 1 << bit % 8
    return bytes(data)


@pytest.mark.parametrize('count', [400, pytest.param(None, marks=pytest.mark.slow)])
def test_no_flipped_bit_changes_a_weight(count, tmp_path):
    """Any one bit of a file: of weights, of names, of the archive's own records."""
    path = tmp_path / 'x.pth'
    torch.save(CONTENT, path)
    whole = path.read_bytes()
    bits = range(8 * len(whole)) if count is None else np.random.RandomState(0).choice(8 * len(whole), count, False)
    refused = 0
    for bit in bits:
        path.write_bytes(flipped(whole, bit))
        try:
            found = read_checkpoint(str(path))
        except UserError as error:
            assert str(path) in str(error) and '\n' not in str(error)
            refused += 1
        else:
            assert same(found, CONTENT), bit
    assert 0.3 * len(bits) < refused < len(bits)  # padding may be anything


def test_what_is_damaged_is_named(tmp_path):
    path = tmp_path / 'x.pth'
    torch.save(CONTENT, path)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(torch.arange(40.0).numpy().tobytes(), torch.arange(1, 41.0).numpy().tobytes()))
    with pytest.raises(UserError, match="x.pth is damaged: the checksum of 'x/data/0' differs"):
        read_checkpoint(str(path))
    assert torch.load(path, weights_only=True)['state_dict']['a.weight'][0] == 1  # torch does not compare


def test_files_without_checksums_are_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(CONTENT, tmp_path / 'x.pth')
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(read_checkpoint(str(tmp_path / 'x.pth')), CONTENT)


@pytest.mark.parametrize('kind', ['zip', 'old', 'pickle'])
def test_any_damage_ends_in_one_line(tmp_path, kind):
    path = tmp_path / 'x.pth'
    if kind == 'pickle':
        path.write_bytes(pickle.dumps(dict(model=dict(a=np.arange(20.0))), protocol=2))
    else:
        torch.save(CONTENT, path, _use_new_zipfile_serialization=kind == 'zip')
    whole = path.read_bytes()
    random = np.random.RandomState(0)
    damaged = [whole[:n] for n in range(0, len(whole), max(1, len(whole) // 50))]
    for _ in range(150):
        changed = bytearray(whole)
        for place in random.randint(0, len(whole), random.choice([1, 3, 20])):
            changed[place] = random.randint(256)
        damaged.append(bytes(changed))
    refused = 0
    for data in damaged:
        path.write_bytes(data)
        try:
            read_checkpoint(str(path))  # without a checksum no one sees that a number changed
        except UserError as error:
            assert str(path) in str(error) and '\n' not in str(error)
            refused += 1
    assert refused > 100


def test_a_program_is_not_run(tmp_path):
    class Module(torch.nn.Module):
        def forward(self, x):
            return x + 1

    torch.jit.script(Module()).save(tmp_path / 'x.pth')
    with pytest.raises(UserError, match='TorchScript archive'):
        read_checkpoint(str(tmp_path / 'x.pth'))
    with zipfile.ZipFile(tmp_path / 'y.pth', 'w') as archive:
        archive.writestr('a.txt', 'x')
    with pytest.raises(UserError, match='torch did not write'):
        read_checkpoint(str(tmp_path / 'y.pth'))


def test_pickled_objects_are_refused_in_one_line(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f'touch {tmp_path}/ran',)

    for save in (torch.save, lambda x, p: p.write_bytes(pickle.dumps(x))):
        save(dict(state_dict={}, extra=Evil()), tmp_path / 'evil.pth')
        with pytest.raises(UserError, match='evil.pth holds pickled Python objects') as caught:
            read_checkpoint(str(tmp_path / 'evil.pth'))
        assert '\n' not in str(caught.value)
    assert not (tmp_path / 'ran').exists()


def test_damaged_and_missing_files(tmp_path):
    good = tmp_path / 'epoch_1.pth'
    torch.save(dict(state_dict=dict(a=torch.zeros(1000))), good)
    (tmp_path / 'cut.pth').write_bytes(good.read_bytes()[:-500])
    (tmp_path / 'empty.pth').write_bytes(b'')
    (tmp_path / 'folder.pth').mkdir()
    (tmp_path / 'text.pth').write_text('hello, not found')
    with zipfile.ZipFile(tmp_path / 'zip.pth', 'w') as archive:
        archive.writestr('a.txt', 'x')
    messages = dict(cut='damaged or not a checkpoint', empty='empty', folder='a folder',
                    text='not a checkpoint: neither', zip='a zip archive that torch did not write')
    for name, message in messages.items():
        with pytest.raises(UserError, match=f'{name}.pth is {message}'):
            read_checkpoint(str(tmp_path / f'{name}.pth'))
    with pytest.raises(FileNotFoundError, match='epoch_2.pth not found.*Did you mean epoch_1.pth'):
        read_checkpoint(str(tmp_path / 'epoch_2.pth'))
