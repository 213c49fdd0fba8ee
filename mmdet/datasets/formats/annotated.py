"""What every reader here returns: images with their objects, in the pixels that training sees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from mmdet.config.errors import UserError
from mmdet.config.output import IMAGE_SUFFIXES
from mmdet.structures.image_file import decode_image, image_size

# What a split is called, and what it is.
SPLITS = dict(train='train', trainval='train', training='train', val='val', valid='val', validation='val', test='test')
_ORIENTATION = 0x0112  # EXIF's tag
_TURNED = (5, 6, 7, 8)  # its values that swap width and height


@dataclass
class Object:
    """One annotated object, in pixels.

    Attributes:
        box: x1, y1, x2, y2.
        mask: polygons as flat lists [x1, y1, x2, y2, ...], an RLE dict, or None.
        crowd: a group that cannot be told apart, or an object that is too difficult to ask for.
    """

    name: str
    box: Sequence[float]
    mask: list | dict | None = None
    crowd: bool = False


@dataclass
class AnnotatedImage:
    """An image file and what is on it; `split` is 'train', 'val', 'test', or None where nothing says so."""

    path: Path
    height: int
    width: int
    objects: list[Object] = field(default_factory=list)
    split: str | None = None
    content: bytes | None = None  # of an image that lies in its annotation file alone


class Notes:
    """What was odd, counted, with the first place of each kind."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, kind: str, place: object, count: int = 1) -> None:
        self._counts[kind] += count
        self._first.setdefault(kind, str(place))

    def __iter__(self) -> Iterator[str]:
        for kind, count in self._counts.items():
            yield f'{count} x {kind} ({self._first[kind]})'


class ImageFiles:
    """The image files below a folder, looked up by the names that annotations give them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths = sorted(p for p in root.rglob('*') if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        self._by_name: dict[str, list[Path]] = {}
        for path in self.paths:
            for name in {path.name.lower(), path.stem.lower()}:
                self._by_name.setdefault(name, []).append(path)

    def find(self, name: str, folder: Path) -> Path | None:
        """The file called `name` in an annotation file of `folder`: there, in a folder beside it, or the only one of
        that name (with any ending) below the root; the nearest one of several."""
        name = name.replace('\\', '/')
        for place in (folder / name, folder.parent / name, self.root / name):
            if place.is_file():
                return place.resolve()
        base = name.rpartition('/')[2].lower()
        found = self._by_name.get(base) or self._by_name.get(base.rpartition('.')[0]) or []
        parents = {folder.resolve(), folder.resolve().parent}
        near = [path for path in found if parents & set(path.resolve().parents)]
        return (near or found)[0].resolve() if len(near) == 1 or len(found) == 1 else None


def seen_size(path: Path, data: bytes | None = None) -> tuple[tuple[int, int], int] | None:
    """(height, width) of an image as training decodes it, and its EXIF orientation; None where it is none."""
    try:
        data = path.read_bytes() if data is None else data
        size = image_size(data)
        orientation = _orientation(data)
        if size is None or orientation in _TURNED:  # what a decoder makes of it, it alone knows
            size = decode_image(data, str(path)).shape[:2]
        return (int(size[0]), int(size[1])), orientation
    except (OSError, UserError):
        return None


def _orientation(data: bytes) -> int:
    if b'Exif' not in data[:65536] and b'eXIf' not in data:
        return 1
    import io

    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.getexif().get(_ORIENTATION, 1)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        return 1


def note_size(notes: Notes, declared: tuple[int, int] | None, seen: tuple[tuple[int, int], int], place: object) -> None:
    """Note where the size (height, width) in an annotation file is not that of its image, which is then taken."""
    size, orientation = seen
    if declared is not None and declared != size and min(declared) > 0:
        turned = ' (EXIF-rotated)' if orientation in _TURNED else ''
        notes.add(f"annotated size is not that of the image{turned}: the image's is taken",
                  f'{place}: {declared} and {size}')
    elif orientation in (2, 3, 4):
        notes.add('photo that EXIF turns without a change of size: taken as annotated the way it is seen', place)


def as_seen(
    points: np.ndarray, declared: tuple[int, int] | None, size: tuple[int, int], orientation: int
) -> np.ndarray:
    """Points of an annotation in the pixels that training sees.

    A tool that ignores EXIF draws on the image as it is stored, and declares that size; its points are turned. Of any
    other size of the same shape they are scaled.

    Args:
        points: (n, 2) x, y in pixels of the declared size.
        declared, size: (height, width) in the annotation file, and of the image as it is decoded.
    """
    points = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    if declared is None or declared == size or min(declared) <= 0:
        return points
    height, width = declared
    x, y = points.T
    if orientation in _TURNED and declared == size[::-1]:
        turned = {5: (y, x), 6: (height - y, x), 7: (height - y, width - x), 8: (y, width - x)}[orientation]
        return np.stack(turned, axis=1)
    factors = np.array([size[1] / width, size[0] / height])
    return points * factors if abs(factors[0] / factors[1] - 1) < 0.02 else points


def boxed(points: np.ndarray) -> list[float]:
    """x1, y1, x2, y2 round some points."""
    return [*points.min(axis=0).tolist(), *points.max(axis=0).tolist()]


def flat_polygon(points: np.ndarray) -> list[float]:
    return points.ravel().round(3).tolist()
