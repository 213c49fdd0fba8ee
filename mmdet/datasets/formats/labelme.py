"""LabelMe: one JSON file an image, with shapes.

Own code: labelformat 0.1.17 does not read it, and supervision 0.31 makes bitmaps of its polygons,
leaves circles and masks out, and stops at a bad shape.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils

from mmdet.datasets.formats.annotated import (
    AnnotatedImage,
    ImageFiles,
    Notes,
    Object,
    as_seen,
    boxed,
    flat_polygon,
    note_size,
    seen_size,
)

_RESERVED = ('__ignore__', '_background_')  # labels that LabelMe's own converters make no class of


def recognises(source: Path) -> bool:
    return any(b'"shapes"' in path.read_bytes() and b'"imagePath"' in path.read_bytes()
               for path in sorted(source.rglob('*.json'))[:5])


def read(source: Path, notes: Notes) -> list[AnnotatedImage]:
    """Images with a JSON file. Polygons of one label and ``group_id`` are parts of one object."""
    files = ImageFiles(source)
    images = []
    for path in sorted(source.rglob('*.json')):
        try:
            content = json.loads(path.read_bytes())
            shapes = content['shapes']
        except (ValueError, KeyError, TypeError, OSError) as error:
            notes.add('JSON that is not of LabelMe: left out', f'{path}: {error!r}')
            continue
        image = _image(content, path, files, notes)
        if image is None:
            continue
        declared = (int(content.get('imageHeight') or 0), int(content.get('imageWidth') or 0))
        seen = seen_size(image.path, image.content)
        note_size(notes, declared, seen, path)
        groups: dict = {}
        for number, shape in enumerate(shapes):
            found = _object(shape, declared, seen, notes, path)
            if found is None:
                continue
            group = (found.name, shape.get('group_id')) if shape.get('group_id') is not None else number
            whole = groups.get(group)
            if whole is None or not isinstance(whole.mask, list) or not isinstance(found.mask, list):
                groups[group if whole is None else number] = found
            else:
                whole.mask += found.mask
                whole.box = boxed(np.array([whole.box, found.box]).reshape(-1, 2))
        image.objects = list(groups.values())
        images.append(image)
    return images


def _image(content: dict, path: Path, files: ImageFiles, notes: Notes) -> AnnotatedImage | None:
    name = str(content.get('imagePath') or path.stem)
    found, data = files.find(name, path.parent), None
    if found is None and content.get('imageData'):
        try:
            data = base64.b64decode(content['imageData'])
            found = Path(f'{path.stem}{Path(name.replace(chr(92), "/")).suffix or ".png"}')
            notes.add('image that lies in its JSON file alone: written out', path)
        except (binascii.Error, TypeError):
            data = None
    if found is None:
        notes.add('annotation of an image that is not there: left out', f'{path}: {name}')
        return None
    seen = seen_size(found, data)
    if seen is None:
        notes.add('image that cannot be read: left out', found)
        return None
    return AnnotatedImage(found, *seen[0], content=data)


def _object(shape: dict, declared: tuple, seen: tuple, notes: Notes, path: Path) -> Object | None:
    kind, label = shape.get('shape_type') or 'polygon', str(shape.get('label') or '').strip()
    try:
        points = np.array(shape.get('points'), dtype=np.float64).reshape(-1, 2)
    except (ValueError, TypeError):
        points = np.zeros((0, 2))
    needed = dict(polygon=3, rectangle=2, circle=2, mask=2).get(kind)
    if needed is None:
        notes.add(f'shape of the kind {kind}, which has no area: left out', path)
        return None
    if not label or len(points) < needed or not np.isfinite(points).all():
        notes.add('shape without a label, or of too few points: left out', path)
        return None
    if label in _RESERVED:
        notes.add(f'shape with the label {label}, which is no class: left out', path)
        return None
    if kind == 'mask':
        return _bitmap(label, shape, points, seen, notes, path)
    if kind == 'circle':
        centre, edge = points[:2]
        angles = np.linspace(0, 2 * math.pi, 32, endpoint=False)
        points = centre + np.hypot(*(edge - centre)) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    size, orientation = seen
    points = as_seen(points, declared, size, orientation)
    return Object(label, boxed(points), None if kind == 'rectangle' else [flat_polygon(points)])


def _bitmap(label: str, shape: dict, points: np.ndarray, seen: tuple, notes: Notes, path: Path) -> Object | None:
    """A mask is a PNG of the inside of its box."""
    size, orientation = seen
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape['mask']))) as image:
            part = np.array(image.convert('1'), dtype=np.uint8)
    except (KeyError, OSError, binascii.Error, TypeError, ValueError):
        notes.add('mask that is not a PNG: left out', path)
        return None
    x, y = points.min(axis=0).round().astype(int).clip(0)
    whole = np.zeros(size, dtype=np.uint8)
    part = part[: size[0] - y, : size[1] - x]
    if not part.any():
        notes.add('mask without a pixel inside the image: left out', path)
        return None
    whole[y : y + part.shape[0], x : x + part.shape[1]] = part
    rle = mask_utils.encode(np.asfortranarray(whole))
    left, top, width, height = mask_utils.toBbox(rle).tolist()
    rle = dict(size=list(size), counts=rle['counts'].decode())
    return Object(label, [left, top, left + width, top + height], rle)
