"""Annotation files in COCO's detection format, as data sets and metrics read them; coco_arrays.py caches large ones."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import mmengine.fileio as fileio

from mmdet.config.errors import MissingFile, UserError, at_most, say

MAX_SIDE = 2**31 - 1  # pixels
_FIELDS = dict(
    images=('id', 'file_name', 'width', 'height'),
    categories=('id', 'name'),
    annotations=('image_id', 'category_id', 'bbox'),
)


@contextlib.contextmanager
def garbage_kept() -> Iterator[None]:
    """No garbage collection meanwhile: among many objects that all stay it finds nothing, in a third of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def read_bytes(path: str, backend_args: dict | None = None) -> bytes:
    """Content of an annotation file.

    Raises:
        UserError: no such file.
    """
    try:
        return fileio.get(path, backend_args=backend_args)
    except FileNotFoundError:
        raise _missing(path) from None


def check_file(path: str) -> None:
    """Raise MissingFile where a local annotation file is not there."""
    if '://' not in path and not os.path.exists(path):
        raise _missing(path)


def _missing(path: str) -> MissingFile:
    return MissingFile(f'no annotation file {path}; check data_root and ann_file')


@garbage_kept()
def load_coco_file(path: str, backend_args: dict | None = None, need_annotations: bool = True) -> dict:
    """The content of an annotation file, in one form however the tool that wrote it puts things.

    Sizes are whole numbers, a bbox is four finite numbers, an area is finite or absent, `iscrowd` and `ignore` are 0 or
    1 or absent; ids of images and of categories are of one kind throughout. 'annotations' may be absent unless needed.

    Raises:
        UserError: no such file, not JSON, not COCO's detection format, two images or categories of one id, or an entry
            that can be taken in more than one way; the message shows the entry.
    """
    return checked_content(read_bytes(path, backend_args), path, need_annotations)


def checked_content(data: bytes, path: str, need_annotations: bool) -> dict:
    """`load_coco_file` of the `data` that were read from `path`."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f'annotation file {path} is not JSON: {error}') from None
    needed = ['images', 'categories'] + ['annotations'] * need_annotations
    missing = [key for key in needed if not isinstance(content, dict) or content.get(key) is None]
    if missing:
        raise lacking(path, missing)
    content = {key: value for key, value in content.items() if value is not None}
    for key, fields in _FIELDS.items():
        if not isinstance(content.get(key, []), list):
            raise UserError(f'annotation file {path} is not in COCO format: its {key} is not a list')
        for entry in content.get(key, ()):
            wrong = _normalise(entry, fields)
            if wrong:
                raise UserError(f'annotation file {path}: an entry of {key} {wrong}: {entry}'[:300])
    _unify_ids(content, path)
    for key in ('images', 'categories'):
        seen = Counter(entry['id'] for entry in content[key])
        if len(seen) < len(content[key]):
            raise UserError(f'annotation file {path} has several {key} of id {seen.most_common(1)[0][0]!r}')
    return content


def lacking(path: str, keys: Sequence[str]) -> UserError:
    return UserError(f'annotation file {path} is not in COCO format: it lacks {", ".join(keys)}')


def _normalise(entry: Any, fields: Sequence[str]) -> str | None:
    """Bring an entry into its one form, in place; what is wrong with it where that cannot be done."""
    if not isinstance(entry, dict):
        return 'is not a JSON object'
    for field in fields:
        if field not in entry:
            return f'lacks {field}'
    if 'bbox' in fields:
        for field in ('area', 'iscrowd', 'ignore', 'segmentation'):
            if field in entry and entry[field] is None:
                del entry[field]
        box = entry['bbox']
        entry['bbox'] = [_number(side) for side in box] if isinstance(box, list) else []
        if len(entry['bbox']) != 4 or None in entry['bbox']:
            entry['bbox'] = box
            return 'has a bbox that is not four numbers x, y, width, height'
        for field in ('iscrowd', 'ignore'):
            if field in entry:
                flag = _number(entry[field], True)
                if flag not in (0, 1):
                    return f'has {field}={_short(entry[field])}, which is neither 0 nor 1'
                entry[field] = int(flag)
        if 'area' in entry:
            area = _number(entry['area'])
            if area is None:
                return f'has area={_short(entry["area"])}, which is not a number'
            entry['area'] = area
    if 'file_name' in fields and not _is_file_name(entry['file_name']):
        return 'has a file_name that is not the name of a file'
    if 'width' in fields:
        for field in ('width', 'height'):
            side = _number(entry[field])
            if side is None or side <= 0:
                return 'has a width or height that is not a positive number'
            if side != int(side) or side > MAX_SIDE:
                return f'has {field}={_short(side)}, which is not a whole number of pixels up to {MAX_SIDE}'
            entry[field] = int(side)
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 40 else f'{text[:40]}...'


def _number(value: Any, boolean: bool = False) -> int | float | None:
    """A finite number, or one that is written as a text; None for anything else."""
    if type(value) is str or (boolean and type(value) is bool):
        try:
            value = float(value)
        except ValueError:
            return None
    elif type(value) not in (int, float):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:  # a whole number beyond any float
        return None


def _is_file_name(name: Any) -> bool:
    try:
        return isinstance(name, str) and name != '' and b'\0' not in name.encode()
    except UnicodeEncodeError:  # half a character
        return False


def _unify_ids(content: dict, path: str) -> None:
    """Give ids one kind: where some are numbers and others texts, '7' is the number 7.

    Raises:
        UserError: an id or a category's name by which nothing can be looked up.
    """
    places = dict(image=(('images', 'id'), ('annotations', 'image_id')),
                  category=(('categories', 'id'), ('annotations', 'category_id')),
                  name=(('categories', 'name'),))  # fmt: skip
    for kind in places.values():
        types = set()
        for key, field in kind:
            here = {type(entry[field]) for entry in content.get(key, ())}
            if not here <= {int, float, str} or (float in here and not all(
                    entry[field] == entry[field] for entry in content[key])):  # fmt: skip
                raise UserError(f'annotation file {path}: in {key}, {field} must be a number or a text')
            types |= here
        if str not in types or types == {str}:
            continue
        for key, field in kind:
            for entry in content.get(key, ()):
                value = entry[field]
                if type(value) is str and value.isdecimal() and str(int(value)) == value and field != 'name':
                    entry[field] = int(value)


def category_ids(content: dict, classes: Sequence[str], path: str) -> list:
    """The category id of each class, in the order of `classes`; see `choose_categories`."""
    used = {annotation['category_id'] for annotation in content.get('annotations', ())}
    return choose_categories(content['categories'], used, classes, path)


def choose_categories(categories: Sequence[dict], used: set, classes: Sequence[str], path: str) -> list:
    """The id of each class's category, in the order of `classes`.

    Args:
        categories: dicts of id and name.
        used: ids of the categories that have an object. Of several categories of one name the one with objects counts:
            Roboflow lists a supercategory that way.
        classes: names.
        path: the annotation file, for messages.

    Raises:
        UserError: no category of some class's name, or several with objects.
    """
    ids: dict[str, list] = {}
    for category in categories:
        ids.setdefault(category['name'], []).append(category['id'])
    chosen = []
    for name in classes:
        found = ids.get(name, [])
        with_objects = [category_id for category_id in found if category_id in used]
        if len(found) > 1 and len(with_objects) == 1:
            say(f'{path}: of the categories called {name!r}, ids {at_most(map(repr, found))}, only '
                f'{with_objects[0]!r} has objects; the others are left out')
            found = with_objects
        if len(found) > 1:
            raise UserError(f'annotation file {path} has several categories called {name!r}, ids '
                            f'{at_most(map(repr, found))}; give them names of their own, or one id')
        chosen += found
    missing = [repr(name) for name in classes if name not in ids]
    if missing:
        raise UserError(
            f'classes {at_most(missing, 5)} are not in {path}, which has {at_most(map(repr, ids), 20)}; '
            'set metainfo=dict(classes=(...)) of the data set to names from that file'
        )
    return chosen
