"""Annotation files in COCO's detection format, as data sets and metrics read them."""

import contextlib
import gc
import json
import math
from collections import Counter
from collections.abc import Sequence

import mmengine.fileio as fileio

from mmdet.runtime.errors import at_most

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
        FileNotFoundError: no such file.
        ValueError: not JSON, not COCO's detection format, or two images of one id.
    """
    try:
        content = json.loads(fileio.get(path, backend_args=backend_args))
    except FileNotFoundError:
        raise FileNotFoundError(f'no annotation file {path}; check data_root and ann_file') from None
    except ValueError as error:
        raise ValueError(f'annotation file {path} is not JSON: {error}') from None
    needed = ['images', 'categories'] + ['annotations'] * need_annotations
    missing = [key for key in needed if not isinstance(content, dict) or key not in content]
    if missing:
        raise ValueError(f'annotation file {path} is not in COCO format: it lacks {", ".join(missing)}')
    for key, fields in _FIELDS.items():
        for entry in content.get(key, ()):
            wrong = _wrong(entry, fields)
            if wrong:
                raise ValueError(f'annotation file {path}: an entry of {key} {wrong}: {entry}'[:300])
    seen = Counter(image['id'] for image in content['images'])
    if len(seen) < len(content['images']):
        raise ValueError(f'annotation file {path} has several images of id {seen.most_common(1)[0][0]!r}')
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
    return None


def category_ids(content: dict, classes: Sequence[str], path: str) -> list[int]:
    """The category id of each class, in the order of `classes`.

    Raises:
        ValueError: the file at `path` has no category of some class's name.
    """
    ids = {category['name']: category['id'] for category in content['categories']}
    missing = [repr(name) for name in classes if name not in ids]
    if missing:
        raise ValueError(
            f'classes {at_most(missing, 5)} are not in {path}, which has {at_most(map(repr, ids), 20)}; '
            'set metainfo=dict(classes=(...)) of the data set to names from that file'
        )
    return [ids[name] for name in classes]
