"""COCO's format: one JSON file a split, its images somewhere near."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np

from mmdet.config.errors import UserError, at_most
from mmdet.datasets.formats.annotated import (
    SPLITS,
    AnnotatedImage,
    ImageFiles,
    Notes,
    Object,
    as_seen,
    boxed,
    note_size,
    seen_size,
)
from mmdet.structures.coco_file import load_coco_file

_LOOKED_AT = 20  # the largest JSON files of a folder; one with more has a file an image


def annotation_files(source: Path) -> list[Path]:
    """The files below a folder that are in COCO's format."""
    folders: dict[Path, list[Path]] = {}
    for path in [source] if source.is_file() else source.rglob('*.json'):
        folders.setdefault(path.parent, []).append(path)
    largest = (sorted(files, key=lambda path: -path.stat().st_size)[:_LOOKED_AT] for files in folders.values())
    return sorted(path for files in largest for path in files if _is_coco(path))


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
            if word in SPLITS:
                return SPLITS[word]
    return None


def find_splits(source: Path) -> dict[str, Path]:
    """The COCO files of a folder: train.json and val.json, or those whose names say what they are for.

    Raises:
        UserError: none for training, or several for one split.
    """
    if not source.is_dir():
        raise UserError(f'{source}: no such folder')
    given = {part: source / f'{part}.json' for part in ('train', 'val', 'test')}
    if given['train'].exists():
        return {part: path for part, path in given.items() if path.exists()}
    found: dict[str, Path] = {}
    for path in annotation_files(source):
        part = split_of(path)
        if part in found:
            raise UserError(f'{found[part]} and {path} are both for {part}; move one away, or `mmdet convert {source}`')
        if part:
            found[part] = path
    if 'train' not in found:
        raise UserError(f'{source} has no train.json in COCO\'s format; `mmdet convert {source}` makes one of the '
                        'annotations of any tool')
    if 'val' not in found and 'test' in found:
        found['val'] = found.pop('test')
    return found


def image_folder(path: Path, source: Path) -> str:
    """Folder below `source` of the images that a COCO file names; '' for `source` itself.

    Raises:
        UserError: none of the first images is in a likely place.
    """
    names = [image['file_name'] for image in load_coco_file(str(path), need_annotations=False)['images'][:_LOOKED_AT]]
    if any((source / name).is_file() or os.path.isabs(name) for name in names):
        return ''
    files = ImageFiles(source)
    for name in names:
        found = files.find(name, path.parent)
        if found is not None and found.as_posix().endswith(f'/{name}'):
            return Path(os.path.relpath(str(found)[: -len(name)], source.resolve())).as_posix()
    raise UserError(f'{path}: its images ({at_most(names, 3)}) are not found below {source}')


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
        note_size(notes, declared, seen, f'{path}: {entry["file_name"]}')
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
