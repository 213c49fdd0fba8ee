"""YOLO: one text file an image, a line an object: a class's number, then a box or a polygon in fractions of the image.

Own code, since labelformat 0.1.17 leaves out images without a file of labels and stops at a bad line of polygons, and
supervision 0.31 makes bitmaps of polygons; both need a data.yaml whose ``path:`` is right on this machine.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml

from mmdet.config.errors import UserError, at_most
from mmdet.datasets.formats.annotated import (
    SPLITS,
    AnnotatedImage,
    ImageFiles,
    Notes,
    Object,
    boxed,
    flat_polygon,
    seen_size,
)

_TOLERANCE = 0.01  # of the image, by which rounding or a careless hand may leave it


def recognises(source: Path) -> bool:
    if _description(source) is not None:
        return True
    texts = [path for path in source.rglob('*.txt') if path.parent.name == 'labels' or 'labels' in path.parts]
    return bool(texts) and any(_is_line(line) for path in texts[:20] for line in path.read_text().splitlines()[:1])


def read(source: Path, notes: Notes) -> list[AnnotatedImage]:
    """Images of the splits that data.yaml names, or all; an image without a file of labels has no object."""
    file, content = _description(source) or (None, {})
    files = ImageFiles(source)
    names = _names(content, source)
    keypoints = bool(content.get('kpt_shape'))
    images = []
    for path, split in _listed(files, file, content, notes).items():
        seen = seen_size(path)
        if seen is None:
            notes.add('image that cannot be read: left out', path)
            continue
        (height, width), orientation = seen
        if orientation > 4:
            notes.add('EXIF-rotated image: labels are taken to be of the image as it is seen', path)
        image = AnnotatedImage(path, height, width, split=split)
        labels = _labels_of(path)
        if labels is None:
            notes.add('image without labels: kept as one without objects', path)
        else:
            lines = enumerate(labels.read_text(errors='replace').splitlines(), 1)
            found = [
                _object(line, names, keypoints, image, notes, f'{labels} line {i}') for i, line in lines if line.strip()
            ]
            image.objects = [x for x in found if x is not None]
        images.append(image)
    return images


def _description(source: Path) -> tuple[Path, dict] | None:
    """A YAML file with names of classes, and its content."""
    for path in sorted([*source.glob('*.yaml'), *source.glob('*.yml'), *source.glob('*/*.yaml')]):
        try:
            content = yaml.safe_load(path.read_text())
        except (yaml.YAMLError, UnicodeDecodeError):
            continue
        if isinstance(content, dict) and isinstance(content.get('names'), (list, dict)):
            return path, content
    return None


def _names(content: dict, source: Path) -> dict[int, str]:
    names = content.get('names')
    if isinstance(names, dict):
        return {int(number): str(name).strip() for number, name in names.items()}
    if names is None:
        for path in [*source.rglob('classes.txt'), *source.rglob('*.names')]:
            names = [line for line in path.read_text().splitlines() if line.strip()]
            break
        else:
            raise UserError(f'{source}: no data.yaml with names and no classes.txt: the classes have no names; write '
                            'one name a line into classes.txt there')
    return {number: str(name).strip() for number, name in enumerate(names)}


def _listed(files: ImageFiles, file: Path | None, content: dict, notes: Notes) -> dict[Path, str | None]:
    """Split of each image."""
    entries = [(split, entry) for key, split in SPLITS.items() for entry in _as_list(content.get(key))]
    found: dict[Path, str | None] = {}
    for split, entry in entries:
        place = _place(file, content, entry)
        if place is None:
            notes.add('folder of data.yaml that is not there', entry)
            continue
        if place.suffix == '.txt':
            lines = [line.strip() for line in place.read_text().splitlines() if line.strip()]
            listed = [files.find(line, place.parent) for line in lines]
            for line, path in zip(lines, listed):
                if path is None:
                    notes.add('listed image that is not there: left out', f'{place}: {line}')
            found.update((path, split) for path in listed if path is not None and path not in found)
        else:
            found.update((path, split) for path in ImageFiles(place).paths if path not in found)
    if not found:
        if entries:
            notes.add('data.yaml names no folder that is there: all images are taken', file)
        found = {path: SPLITS.get(next((part for part in reversed(path.relative_to(files.root).parts)
                                         if part in SPLITS), '')) for path in files.paths}
    return found


def _as_list(entry: str | list | None) -> list[str]:
    return [str(x) for x in entry] if isinstance(entry, list) else [str(entry)] if entry else []


def _place(file: Path, content: dict, entry: str) -> Path | None:
    """Where a folder or list of data.yaml is: `path` is often that of the machine where it was written."""
    path = str(content.get('path') or '')
    roots = [Path(path).expanduser(), file.parent / path, file.parent, file.parent / Path(path).name]
    bare = entry
    while bare.startswith('../'):  # Roboflow counts from a folder that is not exported
        bare = bare[3:]
    return next((root / name for name in (entry, bare) for root in roots if name and (root / name).exists()), None)


def _labels_of(image: Path) -> Path | None:
    """images/a/b.jpg has labels/a/b.txt, with the last folder of that name; or b.txt lies beside it."""
    parts = list(image.parts)
    for position in reversed(range(len(parts))):
        if parts[position] == 'images':
            parts[position] = 'labels'
            break
    places = (Path(*parts).with_suffix('.txt'), image.with_suffix('.txt'),
              image.parent.parent / 'labels' / f'{image.stem}.txt', image.parent / 'labels' / f'{image.stem}.txt')
    return next((place for place in places if place.is_file()), None)


def _is_line(line: str) -> bool:
    try:
        return len([float(word) for word in line.split()]) >= 5
    except ValueError:
        return False


def _object(line: str, names: dict, keypoints: bool, image: AnnotatedImage, notes: Notes, place: str) -> Object | None:
    try:
        label, *values = [float(word) for word in line.split()]
    except ValueError:
        notes.add('line that is not numbers: left out', place)
        return None
    if keypoints or len(values) == 5:  # after the box: points of a pose, or a score
        values = values[:4]
    if not np.isfinite(values).all() or len(values) < 4 or len(values) % 2:
        notes.add('line that is neither a box nor a polygon: left out', place)
        return None
    if label not in names:
        notes.add('class number out of range: left out', f'{place}: {label:g}, {len(names)} classes '
                  f'({at_most(names.values(), 5)})')
        return None
    points = np.array(values).reshape(-1, 2)
    is_box = len(points) == 2
    if is_box:
        (x, y), (w, h) = points
        points = np.array([(x - w / 2, y - h / 2), (x + w / 2, y + h / 2)])
        if w <= 0 or h <= 0:
            notes.add('box without extent: left out', place)
            return None
    low, high = points.min(axis=0), points.max(axis=0)
    if (high <= 0).any() or (low >= 1).any() or (high - low > 2).any():
        notes.add('coordinates far outside 0..1, pixels perhaps: left out', place)
        return None
    if low.min() < -_TOLERANCE or high.max() > 1 + _TOLERANCE:
        notes.add('coordinates outside 0..1: cut at the image\'s border', place)
    points = points.clip(0, 1) * (image.width, image.height)
    return Object(names[int(label)], boxed(points), None if is_box else [flat_polygon(points)])
