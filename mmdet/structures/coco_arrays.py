"""An annotation file as flat arrays, which every process of a machine maps from one cache file.

As dicts the objects of COCO's training set take some 3 GB in every process and half a minute to read.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import mmap
import os
import tempfile
import zlib
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np

from mmdet.config.errors import at_most, say
from mmdet.structures.coco_file import MAX_SIDE, checked_content, garbage_kept, lacking, read_bytes
from mmdet.structures.masks import mask_bounds

try:
    import msgspec
except ImportError:  # then json reads, several times more slowly
    msgspec = None

CACHED_FROM = 16 << 20  # bytes of an annotation file; smaller ones are read faster than a cache is kept
_MAGIC = b'mmdet annotations 1\n'
_ALIGNMENT = 64  # bytes
_MASKS = dict(none=0, polygons=1, rle=2)
_NO_MASK = {b'null', b'[]', b'{}', b'""', b'0', b'false'}  # JSON texts, without white space


class CocoArrays:
    """Images and objects of an annotation file; objects are in the order of their images.

    N images, A objects of these images.

    Attributes:
        categories: dicts of id and name.
        has_annotations: whether the file has the key 'annotations'.
        doubts: what looks like a mistake in the file, each a few words with a count.
        image_ids: list, or (N,) int64.
        shapes: (N, 2) int64 heights and widths, pixels.
        first: (N + 1,) int64; objects ``first[i]:first[i + 1]`` are on image i.
        boxes: (A, 4) float64 x, y, width, height, pixels.
        category: (A,) int32 positions in `categories`, -1 for an id that is not there.
        areas: (A,) float64 square pixels, NaN where the file has none.
        crowd, ignore: (A,) bool.
        mask: (A,) uint8: 0 none, or no polygon of three points; 1 polygons; 2 run lengths.
    """

    _ARRAYS = ('image_ids', 'shapes', 'names', 'name_ends', 'first', 'boxes', 'category', 'areas', 'crowd', 'ignore',
               'mask', 'segmentations', 'segmentation_ends')  # fmt: skip

    def __init__(self, header: dict, arrays: dict[str, np.ndarray], source: str | None = None) -> None:
        self.categories = header['categories']
        self.has_annotations = header['has_annotations']
        self.doubts = header['doubts']
        for name in self._ARRAYS:
            setattr(self, name, arrays[name])
        if header['image_ids'] is not None:
            self.image_ids = header['image_ids']
        self._header, self._source = header, source

    def __len__(self) -> int:
        return len(self.shapes)

    def __reduce__(self) -> tuple:
        """A worker that is not forked maps the cache file itself."""
        if self._source is not None:
            return load_coco_arrays, (self._source, None, False)
        return CocoArrays, (self._header, {name: np.asarray(getattr(self, name)) for name in self._ARRAYS})

    def file_name(self, index: int) -> str:
        start = self.name_ends[index - 1] if index else 0
        return bytes(self.names[start : self.name_ends[index]]).decode()

    def first_name_with(self, part: str) -> str | None:
        """The first file name that contains a text."""
        position = bytes(self.names).find(part.encode())
        return None if position < 0 else self.file_name(int(np.searchsorted(self.name_ends, position, side='right')))

    def entry(self, index: int) -> dict:
        """``dict(raw_img_info=..., raw_ann_info=[...])``: image `index` and the objects on it, as the file has them."""
        height, width = self.shapes[index].tolist()
        image_id = self.image_ids[index]
        image_id = int(image_id) if isinstance(image_id, np.integer) else image_id
        start, stop = self.first[index : index + 2].tolist()
        ends = self.segmentation_ends[start:stop].tolist()
        begin = int(self.segmentation_ends[start - 1]) if start else 0
        text = bytes(self.segmentations[begin : ends[-1]]) if ends else b''
        annotations = []
        rows = zip(self.boxes[start:stop].tolist(), self.category[start:stop].tolist(), self.areas[start:stop].tolist(),
                   self.crowd[start:stop].tolist(), self.ignore[start:stop].tolist(), ends)  # fmt: skip
        position = begin
        for box, category, area, crowd, ignore, end in rows:
            annotation = dict(image_id=image_id, bbox=box, iscrowd=int(crowd), ignore=int(ignore),
                              category_id=self.categories[category]['id'] if category >= 0 else None)  # fmt: skip
            if area == area:
                annotation['area'] = area
            if end > position:
                annotation['segmentation'] = _decode(text[position - begin : end - begin])
            annotations.append(annotation)
            position = end
        img = dict(id=image_id, file_name=self.file_name(index), height=height, width=width)
        return dict(raw_img_info=img, raw_ann_info=annotations)

    def used_categories(self) -> set:
        """Ids of the categories that have an object."""
        return {self.categories[position]['id'] for position in np.unique(self.category).tolist() if position >= 0}


def _decode(text: bytes) -> Any:
    if msgspec is not None:
        with contextlib.suppress(msgspec.MsgspecError):  # NaN and numbers beyond any float, which json reads
            return msgspec.json.decode(text)
    return json.loads(text)


def load_coco_arrays(path: str, backend_args: dict | None = None, need_annotations: bool = True) -> CocoArrays:
    """The content of an annotation file, from the cache if it has the file as it is now.

    A large file is read once and kept as arrays in MMDET_CACHE (default: ``~/.cache/mmdet``), which may be deleted at
    any time. A cache file is taken if size, time and checksum of the annotation file are those it was made from.

    Raises:
        UserError: see `load_coco_file`.
    """
    if backend_args is not None or not os.path.isfile(path) or os.path.getsize(path) < CACHED_FROM:
        arrays = _in_memory(_columns(read_bytes(path, backend_args), path))
    else:
        try:
            arrays = _cached(path)
        except OSError as error:
            say(f'the annotations of {path} are not cached ({error}): set MMDET_CACHE to a folder that can be written')
            arrays = _in_memory(_columns(read_bytes(path), path))
    if need_annotations and not arrays.has_annotations:
        raise lacking(path, ['annotations'])
    return arrays


# ---------------------------------------------------------------------- reading


class _Columns(NamedTuple):
    """An annotation file column by column; `segmentations` are JSON texts, empty where there is none."""

    categories: list[dict]
    image_ids: list
    names: list[str]
    shapes: np.ndarray
    has_annotations: bool
    image_of: list | np.ndarray
    category_of: list | np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    ignore: np.ndarray
    segmentations: list


@garbage_kept()
def _columns(data: bytes, path: str) -> _Columns:
    columns = _typed_columns(data) if msgspec is not None else None
    if columns is not None:
        return columns
    content = checked_content(data, path, need_annotations=False)
    images, annotations = content['images'], content.get('annotations', [])
    texts = (annotation.get('segmentation') for annotation in annotations)
    return _Columns(
        categories=[dict(id=category['id'], name=category['name']) for category in content['categories']],
        image_ids=[image['id'] for image in images],
        names=[image['file_name'] for image in images],
        shapes=np.array([(image['height'], image['width']) for image in images], dtype=np.int64).reshape(-1, 2),
        has_annotations='annotations' in content,
        image_of=[annotation['image_id'] for annotation in annotations],
        category_of=[annotation['category_id'] for annotation in annotations],
        boxes=np.array([annotation['bbox'] for annotation in annotations], dtype=np.float64).reshape(-1, 4),
        areas=np.array([annotation.get('area', math.nan) for annotation in annotations], dtype=np.float64),
        crowd=np.array([annotation.get('iscrowd', 0) for annotation in annotations], dtype=bool),
        ignore=np.array([annotation.get('ignore', 0) for annotation in annotations], dtype=bool),
        segmentations=[json.dumps(text).encode() if text else b'' for text in texts],
    )


if msgspec is not None:
    _Side = Annotated[int, msgspec.Meta(ge=1, le=MAX_SIDE)]
    _Flag = Annotated[int, msgspec.Meta(ge=0, le=1)]

    class _Image(msgspec.Struct, gc=False):
        id: int
        file_name: str
        width: _Side
        height: _Side

    class _Category(msgspec.Struct, gc=False):
        id: int
        name: str

    class _Annotation(msgspec.Struct, gc=False):
        image_id: int
        category_id: int
        bbox: tuple[float, float, float, float]
        area: float | None = None
        iscrowd: _Flag = 0
        ignore: _Flag = 0
        segmentation: msgspec.Raw = msgspec.Raw(b'')

    class _File(msgspec.Struct):
        images: list[_Image]
        categories: list[_Category]
        annotations: list[_Annotation] | None = None


def _typed_columns(data: bytes) -> _Columns | None:
    """The columns of a file that is as COCO's own; None for any other, which json then reads and `checked_content`
    checks entry by entry."""
    try:
        file = msgspec.json.decode(data, type=_File)
    except (msgspec.MsgspecError, RecursionError):
        return None
    images, annotations = file.images, file.annotations or []
    columns = _Columns(
        categories=[dict(id=category.id, name=category.name) for category in file.categories],
        image_ids=[image.id for image in images],
        names=[image.file_name for image in images],
        shapes=np.array([(image.height, image.width) for image in images], dtype=np.int64).reshape(-1, 2),
        has_annotations=file.annotations is not None,
        image_of=_numbers([annotation.image_id for annotation in annotations]),
        category_of=_numbers([annotation.category_id for annotation in annotations]),
        boxes=np.array([annotation.bbox for annotation in annotations], dtype=np.float64).reshape(-1, 4),
        areas=np.array([annotation.area for annotation in annotations], dtype=np.float64),  # None becomes NaN
        crowd=np.array([annotation.iscrowd for annotation in annotations], dtype=bool),
        ignore=np.array([annotation.ignore for annotation in annotations], dtype=bool),
        segmentations=[annotation.segmentation for annotation in annotations],
    )
    plain = (
        columns.image_of is not None  # ids that fit
        and columns.category_of is not None
        and all(len(set(ids)) == len(ids) for ids in (columns.image_ids, [c['id'] for c in columns.categories]))
        and all(columns.names)
        and not any('\0' in name for name in columns.names)
        and bool(np.isfinite(columns.boxes).all())
    )
    return columns if plain else None


def _flat(columns: _Columns) -> tuple[dict, dict[str, np.ndarray], list]:
    """Header and arrays of `CocoArrays`, but for the segmentations, which follow as a list of texts in their order."""
    ids = _numbers(columns.image_ids)
    image_of = _positions(columns.image_of, columns.image_ids)
    category_of = _positions(columns.category_of, [category['id'] for category in columns.categories])
    doubts = _doubts(columns, image_of, category_of)
    order = np.argsort(image_of, kind='stable')
    order = order[np.searchsorted(image_of[order], 0) :]  # without objects of no image
    texts = list(map(columns.segmentations.__getitem__, order.tolist()))
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    for i in np.flatnonzero(lengths < 100).tolist():
        if bytes(texts[i]).translate(None, b' \t\r\n') in _NO_MASK:
            texts[i], lengths[i] = b'', 0
    names = [name.encode() for name in columns.names]
    arrays = dict(
        image_ids=np.zeros(0, np.int64) if ids is None else ids,
        shapes=columns.shapes,
        names=np.frombuffer(b''.join(names), dtype=np.uint8),
        name_ends=np.cumsum([len(name) for name in names], dtype=np.int64),
        first=np.searchsorted(image_of[order], np.arange(len(names) + 1)).astype(np.int64),
        boxes=columns.boxes[order],
        category=category_of[order].astype(np.int32),
        areas=columns.areas[order],
        crowd=columns.crowd[order],
        ignore=columns.ignore[order],
        mask=np.fromiter(map(_mask_kind, texts), dtype=np.uint8, count=len(texts)),
        segmentation_ends=np.cumsum(lengths),
    )
    header = dict(categories=columns.categories, has_annotations=columns.has_annotations, doubts=doubts,
                  image_ids=columns.image_ids if ids is None else None)  # fmt: skip
    return header, arrays, texts


def _numbers(ids: list | np.ndarray) -> np.ndarray | None:
    """Ids as (n,) int64, where all are whole numbers that fit."""
    if isinstance(ids, np.ndarray):
        return ids
    if not set(map(type, ids)) <= {int}:
        return None
    try:
        return np.array(ids, dtype=np.int64)
    except OverflowError:
        return None


def _positions(wanted: list | np.ndarray, ids: list) -> np.ndarray:
    """Where in `ids` each of `wanted` stands, (n,) int64; -1 where it does not."""
    table, keys = _numbers(ids), _numbers(wanted)
    if table is None or keys is None or not len(table):
        places = {which: position for position, which in enumerate(ids)}
        wanted = wanted.tolist() if isinstance(wanted, np.ndarray) else wanted
        return np.array([places.get(which, -1) for which in wanted], dtype=np.int64)
    order = np.argsort(table)
    found = order[np.searchsorted(table[order], keys).clip(max=len(table) - 1)]
    return np.where(table[found] == keys, found, -1)


def _mask_kind(text: Any) -> int:
    """See `CocoArrays.mask`; `text` is JSON."""
    text = bytes(text)
    if not text.startswith(b'['):
        return _MASKS['rle' if text else 'none']
    if len(text) > 200:  # not looked into: it would take more time than all the rest
        return _MASKS['polygons']
    commas = text.count(b',', 0, text.find(b']'))  # of the first polygon
    if commas >= 5 and commas % 2:
        return _MASKS['polygons']
    polygons = json.loads(text)
    polygons = polygons if polygons and isinstance(polygons[0], list) else [polygons]
    # what is no polygon at all is refused when it is loaded
    whole = any(not isinstance(p, list) or (len(p) >= 6 and len(p) % 2 == 0) for p in polygons)
    return _MASKS['polygons' if whole else 'none']


def _doubts(columns: _Columns, image_of: np.ndarray, category_of: np.ndarray) -> list[str]:
    """What looks like a mistake in annotations that can be read: each a few words with a count."""
    total, known = len(image_of), image_of >= 0
    x, y, width, height = columns.boxes[known].T
    bottom, right = columns.shapes[image_of[known]].reshape(-1, 2).T
    found = []
    for places, ids, key in ((category_of, columns.category_of, 'categories'), (image_of, columns.image_of, 'images')):
        strange = np.flatnonzero(places < 0)
        if len(strange):
            ids = ids[strange].tolist() if isinstance(ids, np.ndarray) else [ids[i] for i in strange]
            names = at_most(map(repr, dict.fromkeys(ids)), 3)
            found.append(f'{len(strange)} of {total} annotations have an id that is not in {key} ({names})')
    negative = np.count_nonzero((width < 0) | (height < 0))
    if negative:
        found.append(f'{negative} of {total} boxes have a negative width or height')
    flat = np.count_nonzero((columns.areas[known] <= 0) & (width >= 1) & (height >= 1))
    if flat:
        found.append(f'{flat} of {total} annotations are left out, their area is 0: give the true area, or none')
    outside = np.count_nonzero((width > right + 2 - x) | (height > bottom + 2 - y))
    if outside > total / 10:
        found.append(f'{outside} of {total} boxes reach out of their images: a bbox is x, y, width, height, not two '
                     'corners')
    if len(x) and (np.abs(columns.boxes[known]) <= 1).all():
        found.append(f'all {len(x)} boxes lie between 0 and 1: a bbox is in pixels; multiply it by the width and '
                     'height of its image')
    else:
        found += _strange_masks(columns, np.flatnonzero(known), image_of)
    crowds = np.count_nonzero(columns.crowd)
    if crowds > total / 2:
        found.append(f'{crowds} of {total} annotations have iscrowd 1, as CVAT writes for every mask: they are ignored '
                     'in training; set iscrowd to 0 where it is one object')
    return found


def _strange_masks(columns: _Columns, known: np.ndarray, image_of: np.ndarray) -> list[str]:
    """What `_doubts` says where most masks, of some hundred objects, lie elsewhere than their boxes."""
    objects = [i for i in known[:: max(len(known) // 200, 1)].tolist()
               if _mask_kind(columns.segmentations[i]) and (columns.boxes[i, 2:] >= 2).all()]  # fmt: skip
    elsewhere = unit = 0
    for i in objects:
        try:
            bounds = mask_bounds(_decode(bytes(columns.segmentations[i])), *columns.shapes[image_of[i]].tolist())
        except (ValueError, RecursionError):  # which is said where masks are loaded
            return []
        x, y, width, height = columns.boxes[i].tolist()
        if bounds is not None:
            left, top, right, bottom = bounds
            unit += min(left, top) >= 0 and max(right, bottom) <= 1
            common = max(min(right, x + width) - max(left, x), 0) * max(min(bottom, y + height) - max(top, y), 0)
            elsewhere += common < 0.1 * max(width * height, (right - left) * (bottom - top))
    if elsewhere <= len(objects) / 2:
        return []
    why = 'between 0 and 1: multiply them by the width and height of the image' if unit == elsewhere else (
        'as where they were drawn on an image of another size, or x and y were exchanged')
    return [f'of {len(objects)} objects looked at, {elsewhere} have a mask elsewhere than their bbox; both are in '
            f'pixels. The masks lie {why}']


# ---------------------------------------------------------------------- keeping


def _in_memory(columns: _Columns) -> CocoArrays:
    header, arrays, texts = _flat(columns)
    return CocoArrays(header, arrays | dict(segmentations=np.frombuffer(b''.join(texts), dtype=np.uint8)))


def _cached(path: str) -> CocoArrays:
    """From the cache, where it is made if need be; other processes that want it wait."""
    folder = Path(os.environ.get('MMDET_CACHE') or os.path.expanduser('~/.cache/mmdet'))
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.blake2b(os.path.realpath(path).encode(), digest_size=12).hexdigest()
    place = folder / f'{Path(path).stem}-{name}.annotations'
    with open(path, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        key = [len(content), os.fstat(file.fileno()).st_mtime_ns, zlib.crc32(content)]
    arrays = _mapped(place, key, path)
    if arrays is None:
        with open(place.with_suffix('.lock'), 'w') as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            arrays = _mapped(place, key, path)
            if arrays is None:
                for left_over in folder.glob(f'{place.stem}.*.tmp'):  # of a process that was killed
                    left_over.unlink(missing_ok=True)
                _write(place, key, _columns(read_bytes(path), path))
                arrays = _mapped(place, key, path)
    return arrays


def _write(place: Path, key: list[int], columns: _Columns) -> None:
    header, arrays, texts = _flat(columns)
    table, position = {}, 0
    for name, array in arrays.items():
        table[name] = dict(dtype=array.dtype.str, shape=array.shape, offset=position)
        position += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    length = int(arrays['segmentation_ends'][-1]) if texts else 0
    table['segmentations'] = dict(dtype='|u1', shape=[length], offset=position)
    text = json.dumps(dict(key=key, length=position + length, table=table, header=header)).encode()
    text += b' ' * (-(len(_MAGIC) + 8 + len(text)) % _ALIGNMENT)
    with tempfile.NamedTemporaryFile(dir=place.parent, prefix=f'{place.stem}.', suffix='.tmp', delete=False) as file:
        try:
            file.write(_MAGIC + len(text).to_bytes(8, 'little') + text)
            for array in arrays.values():
                file.write(np.ascontiguousarray(array))
                file.write(bytes(-array.nbytes % _ALIGNMENT))
            for start in range(0, len(texts), 10_000):
                file.write(b''.join(texts[start : start + 10_000]))
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)  # a temporary file is its owner's alone
            os.replace(file.name, place)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(file.name)


def _mapped(place: Path, key: list[int], path: str) -> CocoArrays | None:
    """The arrays of a cache file, None where it is missing, damaged or made from another file than the `key` says."""
    try:
        memory = np.memmap(place, mode='r')
    except (FileNotFoundError, ValueError):  # no file, or an empty one
        return None
    start = len(_MAGIC) + 8
    if bytes(memory[: len(_MAGIC)]) != _MAGIC:
        return None
    end = start + int.from_bytes(bytes(memory[start - 8 : start]), 'little')
    try:
        content = json.loads(bytes(memory[start:end]))
    except ValueError:
        return None
    if len(memory) != end + content['length'] or key != content['key']:
        return None
    arrays = {
        name: np.frombuffer(memory, entry['dtype'], math.prod(entry['shape']), end + entry['offset']).reshape(
            entry['shape'])
        for name, entry in content['table'].items()
    }  # fmt: skip
    return CocoArrays(content['header'], arrays, path)
