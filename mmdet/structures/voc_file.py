"""Annotation files in Pascal VOC's format: one XML file an image, as data sets read them.

The benchmark counts pixels from 1 and names the first and the last pixel that an object covers. In coordinates that
run from 0 at the left edge of the image the object reaches from ``xmin - 1`` to ``xmax``, and is ``xmax - xmin + 1``
wide. Tools that write its format (labelImg, CVAT) name the corners that were drawn, in coordinates from 0.
``source/database`` tells them apart: 'The VOC2007 Database'.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.etree import ElementTree

from mmdet.config.errors import UserError
from mmdet.structures.coco_file import read_bytes


@dataclass
class VocObject:
    """An object of an image: its class, box [x1, y1, x2, y2] in pixels from 0, and whether VOC calls it difficult."""

    name: str
    bbox: list[float]
    difficult: bool


@dataclass
class VocFile:
    """What an XML file says of its image; None for what it does not say."""

    file_name: str | None
    width: int | None
    height: int | None
    objects: list[VocObject] = field(default_factory=list)
    without_box: int = 0  # objects that have a polygon or a rotated box alone


class _Tree(ElementTree.TreeBuilder):
    """A document type is where entities are declared: there is no bomb and no foreign file without one."""

    def doctype(self, name: str, public_id: str | None, system: str | None) -> None:
        raise UserError(f'has a document type (<!DOCTYPE {name}>), which no annotation needs and may hide anything')


def load_voc_file(path: str, backend_args: dict | None = None) -> VocFile:
    """Read the annotation of an image.

    Raises:
        UserError: no such file, not XML, XML with a document type, another format, or an object that cannot be read;
            the message names the file and the object.
    """
    data = read_bytes(path, backend_args)
    try:
        return _file(_root(data))
    except UserError as error:
        raise UserError(f'annotation file {path} {error}') from None


def _root(data: bytes) -> ElementTree.Element:
    """The ``<annotation>`` of a file's content.

    Raises:
        UserError: not XML, XML with a document type, or of another format; the message goes on after the file's name.
    """
    declared = re.match(rb'<\?xml[^>]*?encoding\s*=\s*["\']([\w.-]+)', data)
    parser = ElementTree.XMLParser(target=_Tree())
    try:
        # the parser itself knows few encodings; of a text it ignores the declared one
        parser.feed(data.decode(declared[1].decode()) if declared else data)
        root = parser.close()
    except (ElementTree.ParseError, UnicodeError, LookupError) as error:
        raise UserError(f'is not XML: {error}') from None
    if root.tag != 'annotation':
        raise UserError(f'is not in Pascal VOC format: <annotation> is expected, not <{root.tag}>')
    return root


def _file(root: ElementTree.Element) -> VocFile:
    sides = (_side(root.findtext(f'size/{key}')) for key in ('width', 'height'))
    file = VocFile(_text(root, 'filename') or None, *sides)
    first = _first_pixel(root)
    for number, node in enumerate(root.findall('object'), start=1):
        name, box = _text(node, 'name'), node.find('bndbox')
        if box is None:
            file.without_box += 1
            continue
        if not name:
            raise UserError(f'has no name for object {number}')
        difficult = _text(node, 'difficult').lower() in ('1', '1.0', 'true', 'yes')
        file.objects.append(VocObject(name, _box(box, first, f'object {number} ({name})'), difficult))
    return file


def _text(node: ElementTree.Element, key: str) -> str:
    return (node.findtext(key) or '').strip()


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _side(text: str | None) -> int | None:
    """Pixels; tools that do not know a size leave it out, or write 0."""
    value = _number((text or '').strip())
    return int(value) if value and value > 0 and value == int(value) else None


def _box(box: ElementTree.Element, first: int, what: str) -> list[float]:
    texts = {key: _text(box, key) for key in ('xmin', 'ymin', 'xmax', 'ymax')}
    values = [_number(text) for text in texts.values()]
    if None in values:
        raise UserError(f'has a bndbox that is not four numbers xmin, ymin, xmax, ymax: {what} has {texts}')
    return _in_pixels(values, first)


def _first_pixel(root: ElementTree.Element) -> int:
    """The number of the leftmost pixel: 1 in files of the benchmark, 0 in those of tools."""
    return int('VOC' in root.findtext('source/database', ''))


def _in_pixels(corners: Sequence[float], first: int) -> list[float]:
    """[x1, y1, x2, y2] in pixels from 0, of xmin, ymin, xmax, ymax, or of any two corners, as some tools write.

    >>> _in_pixels((1, 1, 10, 2), first=1)
    [0, 0, 10, 2]
    """
    (xmin, xmax), (ymin, ymax) = sorted(corners[::2]), sorted(corners[1::2])
    return [xmin - first, ymin - first, xmax, ymax]
