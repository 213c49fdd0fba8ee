"""Files and folders that a person asked for: checked before the work, written whole."""

import os
import tempfile
from collections.abc import Container, Iterable
from pathlib import Path

from mmdet.config.errors import UserError

IMAGE_SUFFIXES = {'.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff'}  # looked for, and drawn into


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


def unused(path: Path, taken: Container[Path]) -> Path:
    """`path`, or the first of path_2, path_3, ... that is not `taken`."""
    place, number = path, 1
    while place in taken:
        number += 1
        place = path.with_stem(f'{path.stem}_{number}')
    return place


def output_files(inputs: Iterable[str | Path], folder: str | Path) -> list[Path]:
    """Where the drawing of each input image goes: below `folder`, wherever the input lies, and no two to one place.

    An image keeps its name and, where images of several folders have equal names, its folders below the one that they
    all share. Several drawings of one image are numbered; what does not end as an image file gets '.png'.

    Raises:
        UserError: an input would be overwritten.

    >>> [str(path) for path in output_files(['/data/a/1.jpg', '/data/b/../../2.jpg', '/data/a/1.jpg'], 'show')]
    ['show/1.jpg', 'show/2.jpg', 'show/1_2.jpg']
    >>> [str(path) for path in output_files(['/data/a/1.jpg', '/data/b/../../1.jpg'], 'show')]
    ['show/data/a/1.jpg', 'show/1.jpg']
    """
    paths = [Path(os.path.abspath(path)) for path in inputs]  # without '..'
    root = os.path.commonpath([path.parent for path in paths]) if paths else ''
    distinct = set(paths)
    flat = len({path.name for path in distinct}) == len(distinct)
    names = [Path(path.name) if flat else path.relative_to(root) for path in paths]
    places: dict[Path, None] = {}
    for name in names:
        place = name if name.suffix.lower() in IMAGE_SUFFIXES else name.with_name(f'{name.name}.png')
        places[unused(place, places)] = None
    source, target = Path(os.path.realpath(root)), Path(os.path.realpath(folder))
    lost = {source / path.relative_to(root) for path in distinct} & {target / place for place in places}
    if lost:
        raise UserError(f'{folder}: a drawing there would overwrite the image {min(lost)}; choose another folder')
    return [Path(folder) / place for place in places]
