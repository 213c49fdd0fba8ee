"""COCO's format: one JSON file a split, its images somewhere near."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from mmdet.config.errors import UserError
from mmdet.datasets.formats.annotated import AnnotatedImage, ImageFiles, Notes, Object, as_seen, boxed, seen_size
from mmdet.structures.coco_file import load_coco_file

_SPLITS = dict(train='train', trainval='train', val='val', valid='val', validation='val', test='test')


def annotation_files(source: Path) -> list[Path]:
    """The files below a folder that are in COCO's format; of several forms of one split the shortest name."""
    files = [source] if source.is_file() else sorted(source.rglob('*.json'))
    return [path for path in files if _is_coco(path)]


def recognises(source: Path) -> bool:
    return bool(annotation_files(source))


def _is_coco(path: Path) -> bool:
    text = path.read_bytes()
    return all(f'"{key}"'.encode() in text for key in ('images', 'annotations', 'categories'))


def split_of(path: Path) -> str | None:
    """What a file is for, from its name (instances_train2017.json) or that of its folder (valid/_annotations.json)."""
    for name in (path.stem, path.parent.name):
        words = ''.join(c if c.isalpha() else ' ' for c in name.lower()).split()
        for word in words:
            if word in _SPLITS:
                return _SPLITS[word]
    return None


def read(source: Path, notes: Notes) -> list[AnnotatedImage]:
    folder = source.parent if source.is_file() else source
    files, images, origin = ImageFiles(folder), [], {}
    for path in annotation_files(source):
        for image in _read_file(path, files, notes):
            if origin.setdefault(image.path, path) != path:
                raise UserError(f'{image.path.name} is in {origin[image.path]} and in {path}; name one of them, or '
                                'move the other away')
            images.append(image)
    return images


def _read_file(path: Path, files: ImageFiles, notes: Notes) -> list[AnnotatedImage]:
    content = load_coco_file(str(path))
    names = {category['id']: str(category['name']).strip() for category in content['categories']}
    annotations: dict = {}
    for annotation in content['annotations']:
        annotations.setdefault(annotation['image_id'], []).append(annotation)
    crowds = Counter(bool(annotation.get('iscrowd')) for annotation in content['annotations'])
    all_crowds = crowds[True] > crowds[False]
    if all_crowds:
        notes.add('iscrowd 1 on most objects, as CVAT writes for masks: taken as 0', path, crowds[True])
    images = []
    for entry in content['images']:
        found = files.find(entry['file_name'], path.parent)
        if found is None:
            notes.add('annotation of an image that is not there: left out', f'{path}: {entry["file_name"]}')
            continue
        seen = seen_size(found)
        if seen is None:
            notes.add('image that cannot be read: left out', found)
            continue
        image = AnnotatedImage(found, *seen[0], split=split_of(path))
        declared = (entry['height'], entry['width'])
        if declared != seen[0]:
            notes.add("annotated size is not that of the image: the image's is taken", f'{path}: {entry["file_name"]}')
        for annotation in annotations.get(entry['id'], ()):
            if annotation['category_id'] not in names:
                notes.add('annotation of no category: left out', f'{path}: category_id {annotation["category_id"]}')
                continue
            image.objects.append(_object(annotation, names, declared, *seen, crowd=not all_crowds))
        images.append(image)
    return images


def _object(annotation: dict, names: dict, declared: tuple, size: tuple, orientation: int, crowd: bool) -> Object:
    x, y, width, height = annotation['bbox']
    mask = annotation.get('segmentation') or None
    box = np.array([(x, y), (x + width, y + height)])
    if isinstance(mask, list):
        polygons = [mask] if not isinstance(mask[0], list) else mask
        mask = [as_seen(p, declared, size, orientation).ravel().tolist() if len(p) % 2 == 0 else p for p in polygons]
    elif declared != size:
        mask = None
    ignored = bool(annotation.get('iscrowd')) and crowd or bool(annotation.get('ignore'))
    return Object(names[annotation['category_id']], boxed(as_seen(box, declared, size, orientation)), mask, ignored)
