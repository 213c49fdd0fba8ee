"""CVAT for images 1.1: one XML file for all images.

Own code, since labelformat 0.1.17 reads its boxes alone, and hotcoco 1.3 boxes and polygons, but no masks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from pycocotools import mask as mask_utils

from mmdet.config.errors import UserError
from mmdet.datasets.formats.annotated import (
    SPLITS,
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


def recognises(source: Path) -> bool:
    return any(b'<annotations' in path.read_bytes()[:2000] for path in sorted(source.rglob('*.xml'))[:5])


def read(source: Path, notes: Notes) -> list[AnnotatedImage]:
    files = ImageFiles(source)
    images = []
    for path in sorted(source.rglob('*.xml')):
        try:
            root = ElementTree.parse(path).getroot()
        except (ElementTree.ParseError, OSError) as error:
            notes.add('XML that cannot be read: left out', f'{path}: {error}')
            continue
        if root.find('track') is not None:
            raise UserError(f"{path} is CVAT's format for videos; export the task as 'CVAT for images 1.1'")
        for element in root.iter('image'):
            image = _image(element, path, files, notes)
            if image is not None:
                images.append(image)
    return images


def _image(element: ElementTree.Element, path: Path, files: ImageFiles, notes: Notes) -> AnnotatedImage | None:
    name = element.get('name', '')
    found = files.find(name, path.parent)
    if found is None:
        notes.add('annotation of an image that is not there: left out', f'{path}: {name}')
        return None
    seen = seen_size(found)
    if seen is None:
        notes.add('image that cannot be read: left out', found)
        return None
    size, orientation = seen
    declared = (int(float(element.get('height', 0))), int(float(element.get('width', 0))))
    note_size(notes, declared, seen, f'{path}: {name}')
    image = AnnotatedImage(found, *size, split=SPLITS.get(element.get('subset', '').lower()))
    for label, points, mask in _shapes(element, declared, notes, f'{path}: {name}'):
        if mask is not None and declared == size:
            left, top, width, height = mask_utils.toBbox(mask).tolist()
            rle = dict(size=list(size), counts=mask['counts'].decode())
            image.objects.append(Object(label, [left, top, left + width, top + height], rle))
        elif points is not None:
            points = as_seen(points, declared, size, orientation)
            image.objects.append(Object(label, boxed(points), [flat_polygon(points)] if len(points) > 4 or not
                                        _is_upright(points) else None))
    return image


def _shapes(element: ElementTree.Element, declared: tuple[int, int], notes: Notes,
            place: str) -> Iterator[tuple[str, np.ndarray | None, dict | None]]:  # fmt: skip
    for shape in element:
        label = shape.get('label', '').strip()
        try:
            if shape.tag == 'box':
                yield label, _box(shape), None
            elif shape.tag == 'polygon':
                yield label, np.array([pair.split(',') for pair in shape.get('points').split(';')], np.float64), None
            elif shape.tag == 'mask':
                yield label, None, _mask(shape, declared)
            elif shape.tag != 'tag':
                notes.add(f'shape of the kind {shape.tag}, which has no area: left out', place)
        except (TypeError, ValueError, AttributeError) as error:
            notes.add('shape that cannot be read: left out', f'{place}: {error}')


def _box(shape: ElementTree.Element) -> np.ndarray:
    """Corners of a box, which may be turned about its centre."""
    x1, y1, x2, y2 = (float(shape.get(key)) for key in ('xtl', 'ytl', 'xbr', 'ybr'))
    corners = np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)])
    angle = np.deg2rad(float(shape.get('rotation', 0)))
    centre = corners.mean(axis=0)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return (corners - centre) @ turn + centre


def _mask(shape: ElementTree.Element, declared: tuple[int, int]) -> dict:
    """CVAT's run lengths go by rows, inside the mask's box, and begin with zeros."""
    left, top, width, height = (int(float(shape.get(key))) for key in ('left', 'top', 'width', 'height'))
    runs = [int(text) for text in shape.get('rle').split(',')]
    pixels = np.repeat(np.arange(len(runs)) % 2, runs).astype(np.uint8)
    whole = np.zeros(declared, dtype=np.uint8)
    whole[top : top + height, left : left + width] = pixels.reshape(height, width)
    return mask_utils.encode(np.asfortranarray(whole))


def _is_upright(points: np.ndarray) -> bool:
    """Whether four points are the corners of an upright box."""
    return len(points) == 4 and all(len(np.unique(side.round(3))) == 2 for side in points.T)
