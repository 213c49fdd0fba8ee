"""Annotation files in COCO's detection format, as data sets and metrics read them."""

import contextlib
import gc
import json
import math
from collections import Counter
from collections.abc import Sequence

import mmengine.fileio as fileio

from mmdet.config.errors import MissingFile, UserError, at_most

_FIELDS = dict(
    images=('id', 'file_name', 'width', 'height'),
    categories=('id', 'name'),
    annotations=('image_id', 'category_id', 'bbox'),
)


@contextlib.contextmanager
def garbage_kept():
    """No garbage collection meanwhile: among many objects that all stay it finds nothing, in a third of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@garbage_kept()
def load_coco_file(path: str, backend_args: dict | None = None, need_annotations: bool = True) -> dict:
    """The content of an annotation file; 'annotations' may be absent unless needed.

    Raises:
        MissingFile: no such file.
        UserError: not JSON, not COCO's detection format, or two images or categories of one id.
    """
    try:
        content = json.loads(fileio.get(path, backend_args=backend_args))
    except FileNotFoundError:
        raise MissingFile(f'no annotation file {path}; check data_root and ann_file') from None
    except OSError as error:
        raise UserError(f'annotation file {path} cannot be read: {error.strerror}') from error
    except ValueError as error:
        raise UserError(f'annotation file {path} is not JSON: {error}') from None
    needed = ['images', 'categories'] + ['annotations'] * need_annotations
    missing = [key for key in needed if not isinstance(content, dict) or content.get(key) is None]
    if missing:
        raise UserError(f'annotation file {path} is not in COCO format: it lacks {", ".join(missing)}')
    content = {key: value for key, value in content.items() if value is not None}
    for key, fields in _FIELDS.items():
        if not isinstance(content.get(key, []), list):
            raise UserError(f'annotation file {path} is not in COCO format: its {key} is no list')
        for entry in content.get(key, ()):
            wrong = _wrong(entry, fields)
            if wrong:
                raise UserError(f'annotation file {path}: an entry of {key} {wrong}: {entry}'[:300])
    _check_ids(content, path)
    for key in ('images', 'categories'):
        seen = Counter(entry['id'] for entry in content[key])
        if len(seen) < len(content[key]):
            raise UserError(f'annotation file {path} has several {key} of id {seen.most_common(1)[0][0]!r}')
    return content


def _wrong(entry: dict, fields: Sequence[str]) -> str | None:
    if not isinstance(entry, dict):
        return 'is no JSON object'
    for field in fields:
        if field not in entry:
            return f'lacks {field}'
    if 'bbox' in fields:
        try:
            x, y, width, height = entry['bbox']
            known = math.isfinite(x + y + width + height)
        except (TypeError, ValueError):
            known = False
        if not known:
            return 'has a bbox that is not four numbers x, y, width, height'
        if entry.get('iscrowd', 0) not in (0, 1):
            return f'has iscrowd={entry["iscrowd"]!r}, which is neither 0 nor 1'
        if not isinstance(entry.get('area', 0), (int, float)):
            return f'has area={entry["area"]!r}, which is no number'
    if 'file_name' in fields and not isinstance(entry['file_name'], str):
        return 'has a file_name that is no text'
    if 'width' in fields:
        sides = entry['width'], entry['height']
        if not all(isinstance(side, (int, float)) and side > 0 for side in sides):
            return 'has a width or height that is no positive number'
    return None


def _check_ids(content: dict, path: str) -> None:
    """Raise ValueError where an id or a category's name is a list or an object, which nothing can be looked up by."""
    for key, fields in _FIELDS.items():
        for field in set(fields) & {'id', 'image_id', 'category_id', 'name'}:
            try:
                {entry[field] for entry in content.get(key, ())}
            except TypeError:
                raise UserError(f'annotation file {path}: in {key}, {field} must be a number or a text') from None


def doubts(content: dict) -> list[str]:
    """What looks like a mistake in annotations that can be read: each a few words with a count."""
    sizes = {image['id']: (image['width'], image['height']) for image in content['images']}
    categories = {category['id'] for category in content['categories']}
    strange_categories, strange_pictures, negative, flat, outside, total = Counter(), Counter(), 0, 0, 0, 0
    for annotation in content.get('annotations', ()):
        total += 1
        if annotation['category_id'] not in categories:
            strange_categories[annotation['category_id']] += 1
        if annotation['image_id'] not in sizes:
            strange_pictures[annotation['image_id']] += 1
            continue
        x, y, width, height = annotation['bbox']
        right, bottom = sizes[annotation['image_id']]
        negative += width < 0 or height < 0
        flat += annotation.get('area', 1) <= 0 and width >= 1 and height >= 1
        outside += x + width > right + 2 or y + height > bottom + 2
    found = []
    for counter, key in ((strange_categories, 'categories'), (strange_pictures, 'images')):
        if counter:
            ids = at_most(map(repr, counter), 3)
            found.append(f'{counter.total()} of {total} annotations have an id that is not in {key} ({ids})')
    if negative:
        found.append(f'{negative} of {total} boxes have a negative width or height')
    if flat:
        found.append(f'{flat} of {total} annotations are left out, their area is 0: give the true area, or none')
    if outside > total / 10:
        found.append(f'{outside} of {total} boxes reach out of their pictures: a bbox is x, y, width, height, not two '
                     'corners')
    return found


def category_ids(content: dict, classes: Sequence[str], path: str) -> list[int]:
    """The category id of each class, in the order of `classes`.

    Raises:
        UserError: the file at `path` has no category of some class's name, or several.
    """
    ids = {category['name']: category['id'] for category in content['categories']}
    twice = [name for name, count in Counter(c['name'] for c in content['categories']).items() if count > 1]
    if set(twice) & set(classes):
        raise UserError(f'annotation file {path} has several categories called {at_most(map(repr, twice), 5)}')
    missing = [repr(name) for name in classes if name not in ids]
    if missing:
        raise UserError(
            f'classes {at_most(missing, 5)} are not in {path}, which has {at_most(map(repr, ids), 20)}; '
            'set metainfo=dict(classes=(...)) of the data set to names from that file'
        )
    return [ids[name] for name in classes]
