"""Files and folders that a person asked for: checked before the work, written whole."""

import os
import tempfile
from pathlib import Path

from mmdet.config.errors import UserError


def check_writable(folder: str, option: str) -> None:
    """Make a folder where it is missing; raises UserError where files cannot be written into it."""
    try:
        os.makedirs(folder, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        reason = 'it is a file' if os.path.isfile(folder) else error.strerror
        raise UserError(f'{option} {folder}: cannot write there ({reason})') from error


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write a file so that at any moment `path` is the old content or the new one, whole.

    Raises:
        OSError: nothing at `path` has changed then, and no temporary file is left.
    """
    path = os.path.abspath(path)
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f'.{name}.{os.getpid()}.tmp')  # several ranks may write one log file
    try:
        with open(temporary, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error  # a full disk alone would name no file
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
    # The rename itself survives a power cut only once the folder is on disk.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
