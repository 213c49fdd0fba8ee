"""Opening a file of weights, once: no code in it is run, and what is damaged is refused."""

import functools
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import torch
from torch import Tensor

from mmdet.checkpoints.pickled_arrays import Refused, is_bare_pickle, read_arrays, run_pickle
from mmdet.checkpoints.plain import from_plain, is_marked
from mmdet.checkpoints.stand_ins import read_without_history
from mmdet.config.errors import MissingFile, UserError, at_most, one_line, suggest

WEIGHTS_KEYS = ('state_dict', 'model', 'blobs')  # where mmengine, detectron2 and caffe2 keep the weights in a file


class Checkpoint(dict):
    """What an opened file holds, and the name that messages give it (its path or address)."""

    def __init__(self, content: dict, path: str):
        super().__init__(content)
        self.path = path
        self.config_text: str | None = getattr(content, 'config_text', None)  # kept apart: mmengine would execute it

    def __str__(self) -> str:
        return self.path

    @property
    def meta(self) -> dict[str, Any]:
        """What the file says about itself; empty where it says nothing."""
        meta = self.get('meta')
        return meta if isinstance(meta, dict) else {}

    @property
    def weights(self) -> dict[str, Tensor]:
        """The state dict of any common layout, without 'module.' prefixes."""
        weights = next((self[key] for key in WEIGHTS_KEYS if isinstance(self.get(key), dict)), self)
        return {
            key.removeprefix('module.'): value
            for key, value in weights.items()
            if isinstance(key, str) and (isinstance(value, Tensor) or key.endswith('_extra_state'))
        }

    @property
    def saved_here(self) -> bool:
        """Whether this toolbox wrote the file: its names are ours, and nothing is converted."""
        return is_marked(self.meta)


def read_checkpoint(path: str) -> Checkpoint:
    """Load a file as weights only, to the CPU: no code in it is ever run, and its checksums are compared.

    Raises:
        UserError: not there (MissingFile), damaged, or holding pickled Python objects.
    """
    return _read(path, read_arrays, _load_safely)


def read_trusted(path: str) -> Checkpoint:
    """`read_checkpoint` for a file whose code shall run; only for a sandbox."""
    return _read(path, run_pickle, functools.partial(torch.load, map_location='cpu', weights_only=False))


def existing_file(path: str) -> str:
    """The path of a checkpoint, without `~`.

    Raises:
        UserError: a folder, or not there (MissingFile).
    """
    path = os.path.expanduser(path)
    if os.path.isdir(path):
        raise UserError(f'{path} is a folder; a checkpoint file is needed')
    if not os.path.isfile(path):
        if os.path.lexists(path):
            raise MissingFile(f'{path} is no file, or a link to one that is not there')
        folder = os.path.dirname(path) or '.'
        found = sorted(f for f in os.listdir(folder) if f.endswith('.pth')) if os.path.isdir(folder) else []
        hint = suggest(os.path.basename(path), found, cutoff=0.7)
        there = f' Its folder holds {at_most(found, 5)}.' if found and not hint else ''
        raise MissingFile(f'checkpoint {path} not found.{hint or there}')
    return path


def _read(path: str, read_pickle: Callable[[BinaryIO], Any], read_torch_file: Callable[[BinaryIO], Any]) -> Checkpoint:
    path = existing_file(path)
    try:
        with open(path, 'rb') as file:
            start = file.read(32)
            file.seek(0)
            _check_kind(path, start)
            if start[:2] == b'PK':
                _compare_checksums(path, file)
            content = (read_pickle if is_bare_pickle(start) else read_torch_file)(file)
        if not isinstance(content, dict):
            raise UserError(f'{path} holds a {type(content).__name__}, not a checkpoint')
        checkpoint = Checkpoint(content, path)
        if checkpoint.saved_here or 'message_hub' in checkpoint:
            checkpoint = Checkpoint(from_plain(content), path)
    except Refused as error:
        raise UserError(
            f'{path} holds pickled Python objects ({error}), which may run any code when loaded, and is refused. '
            'If you trust its origin, convert it inside a container without network: '
            f'python tools/convert_checkpoint.py --trust {path} OUT.pth') from error
    except (UserError, PermissionError):
        raise
    except MemoryError as error:
        raise UserError(f'{path} needs more memory than there is, or is damaged') from error
    except Exception as error:  # torch passes on whatever damaged bytes make its reader raise
        why = f': {one_line(error).split(". ")[0]}' if isinstance(error, RuntimeError) else ''
        raise UserError(f'{path} is damaged or not a checkpoint{why}') from error
    text = checkpoint.meta.pop('config', None) or checkpoint.meta.get('cfg')  # up to 2.x; from 3.x on
    checkpoint.config_text = text if isinstance(text, str) else None
    return checkpoint


def _check_kind(path: str, start: bytes) -> None:
    """Refuse what does not begin as a torch file or a pickle does: an empty file, a text, an image."""
    if not start:
        raise UserError(f'{path} is empty')
    if start[:2] != b'PK' and start[:1] != b'\x80':
        raise UserError(f'{path} is not a checkpoint: neither a file that torch wrote nor a pickle')


def _compare_checksums(path: str, file: BinaryIO) -> None:
    """Refuse an archive with damaged content (torch does not compare) or of another kind."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if not any(entry.filename.endswith('data.pkl') for entry in entries):
            raise UserError(f'{path} is a zip archive that torch did not write')
        if any(entry.filename.endswith('/constants.pkl') for entry in entries):  # torch before 2.6 would run it
            raise UserError(f'{path} is a TorchScript archive, which holds a program beside its weights')
        # all 0: written with torch.serialization.set_crc32_options(False)
        damaged = archive.testzip() if any(entry.CRC for entry in entries) else None
        if damaged:
            raise UserError(f'{path} is damaged: the checksum of {damaged!r} differs')
        if any(entry.external_attr & 0x10 for entry in entries):  # torch takes it for a folder and reads no weights
            raise UserError(f'{path} is damaged: its table of contents')
    file.seek(0)


def _load_safely(file: BinaryIO) -> Any:
    try:
        return torch.load(file, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        content = read_without_history(file) if zipfile.is_zipfile(file) else None
        refused = _refused_name(error)
        if content is not None:
            return content
        if refused is None:
            raise
        raise Refused(refused) from error


def _refused_name(error: BaseException) -> str | None:
    """The object that weights-only loading met and refused; None where the bytes were no pickle's."""
    found = re.search(r'GLOBAL ([\w.]+)', str(error))
    if found:
        return found.group(1)
    return 'an unknown class' if re.search(r'Unsupported class|Can only build', str(error)) else None
