"""What is wrong with images and annotations, looked for in all of them before any is trained on.

Levels: 'refused' stops training or evaluation; 'wrong' lets it run on data that cannot be right; 'remark' is for a
person to judge.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as mask_utils

from mmdet.config.errors import UserError, one_line
from mmdet.datasets.transforms import LoadImageFromFile
from mmdet.structures.coco_file import category_ids, load_coco_file
from mmdet.structures.masks import rle_from_coco

LEVELS = ('refused', 'wrong', 'remark')
SMALL = 8  # pixels of an object's side as the network sees it: a quarter of the smallest anchor

try:
    import hotcoco
except ImportError:  # then its part of the check is left out
    hotcoco = None

# What it finds and is not found here already.
_HOTCOCO = {
    'near_duplicate': 'object annotated twice (same class, IoU above 0.95)',
    'extreme_aspect_ratio': 'box of an extreme aspect ratio',
}


@dataclass
class DataSet:
    """A set to check.

    Attributes:
        name: 'train', 'val' or 'test'.
        ann_file: COCO's format.
        images: folder of the images.
        classes: those that are trained; None for all categories.
        scale: (w, h) of training's Resize, which keeps the aspect ratio; None for the images' own size.
        load: options of `LoadImageFromFile`.
    """

    name: str
    ann_file: str
    images: str = ''
    classes: tuple[str, ...] | None = None
    scale: tuple[int, int] | None = None
    load: dict = field(default_factory=dict)


@dataclass
class Finding:
    """One thing that is odd: where, and the box that it is about, x1, y1, x2, y2 in pixels, with its class's name."""

    level: str
    kind: str
    place: str
    image: str | None = None
    box: list[float] | None = None
    label: str = ''


@dataclass
class Report:
    """What was looked at, and what was found, the worst first."""

    sets: dict[str, dict] = field(default_factory=dict)
    findings: dict[str, list[Finding]] = field(default_factory=dict)

    def kinds(self) -> list[tuple[str, str, str, list[Finding]]]:
        """(set, level, kind, its findings), by level and number."""
        groups: dict[tuple, list[Finding]] = {}
        for name, findings in self.findings.items():
            for finding in findings:
                groups.setdefault((name, finding.level, finding.kind), []).append(finding)
        return sorted(((*key, found) for key, found in groups.items()),
                      key=lambda group: (LEVELS.index(group[1]), -len(group[3])))

    @property
    def sound(self) -> bool:
        return all(level == 'remark' for _, level, _, _ in self.kinds())


def check_sets(sets: Sequence[DataSet], processes: int = 1, watch: Callable[[Iterator], Iterator] = iter) -> Report:
    """Look at every image and annotation once.

    Args:
        processes: that decode images.
        watch: wraps the iterator over images, to show how far it is.
    """
    report, seen = Report(), {}
    cv2.setNumThreads(0)  # in forked processes its threads would hang
    for dataset in sets:
        findings = report.findings[dataset.name] = []
        try:
            content = load_coco_file(dataset.ann_file, need_annotations=dataset.name != 'test')
            chosen = _chosen_categories(content, dataset)
        except UserError as error:
            findings.append(Finding('refused', 'annotation file that cannot be used', one_line(error)))
            continue
        annotated = 'annotations' in content  # a test server's set may not be
        content.setdefault('annotations', [])
        counts = Counter(x['category_id'] for x in content['annotations'] if not x.get('iscrowd'))
        names = {category['id']: category['name'] for category in content['categories']}
        report.sets[dataset.name] = dict(
            ann_file=dataset.ann_file, images=len(content['images']), objects=len(content['annotations']),
            classes={names[i]: counts[i] for i in chosen},
        )
        if annotated:
            findings += _check_annotations(content, dataset, chosen)
            findings += _ask_hotcoco(content, dataset)
        for image, digest, found in watch(_check_images(content, dataset, processes)):
            findings += found
            if digest is None:
                continue
            first = seen.setdefault(digest, (dataset.name, image))
            if first != (dataset.name, image):
                same = first[0] == dataset.name
                kind = 'image that is there twice' if same else f'image that is in {first[0]}, too'
                findings.append(Finding('remark' if same else 'wrong', kind, f'{image} = {first[1]}', image))
    return report


def _chosen_categories(content: dict, dataset: DataSet) -> list:
    if dataset.classes is None:
        return [category['id'] for category in content['categories']]
    return category_ids(content, dataset.classes, dataset.ann_file)


def _path(dataset: DataSet, image: dict) -> str:
    return os.path.join(dataset.images, image['file_name'])


def _check_annotations(content: dict, dataset: DataSet, chosen: list) -> Iterator[Finding]:
    images = {image['id']: image for image in content['images']}
    known = {category['id'] for category in content['categories']}
    names = {category['id']: category['name'] for category in content['categories']}
    used: Counter = Counter()
    for number, annotation in enumerate(content['annotations']):
        place = f'annotation {annotation.get("id", number)}'
        image = images.get(annotation['image_id'])
        if image is None:
            yield Finding('wrong', 'annotation of an image that is not listed', f'{place}: {annotation["image_id"]}')
            continue
        path = _path(dataset, image)
        if annotation['category_id'] not in known:
            yield Finding('wrong', 'annotation of a category that is not listed',
                          f'{path}: {annotation["category_id"]}', path)
            continue
        used[annotation['category_id']] += not annotation.get('iscrowd')
        x, y, w, h = annotation['bbox']
        spot = (path, [x, y, x + w, y + h], names[annotation['category_id']])
        kind = _wrong_box(x, y, w, h, image['width'], image['height'])
        if kind is not None:
            yield Finding('wrong', kind, f'{path}: bbox {annotation["bbox"]}', *spot)
            continue
        if w < 1 or h < 1:
            place = f'{path}: bbox {annotation["bbox"]}'
            yield Finding('remark', 'box under one pixel: left out in training', place, *spot)
        elif annotation.get('area', 1) <= 0:
            yield Finding('wrong', 'area of 0: left out in training', path, *spot)
        sides = sorted((image['width'], image['height']))
        factor = min(max(dataset.scale) / sides[1], min(dataset.scale) / sides[0]) if dataset.scale else 1
        if (w * h) ** 0.5 * factor < SMALL:
            yield Finding('remark', f'object under {SMALL} pixels at the scale of training', path, *spot)
    for category_id in chosen:
        if not used[category_id]:
            yield Finding('remark', 'class without an object', str(names[category_id]))
        elif used[category_id] < 10 and dataset.name == 'train':
            yield Finding('remark', 'class of fewer than 10 objects', f'{names[category_id]}: {used[category_id]}')
    empty = images.keys() - {annotation['image_id'] for annotation in content['annotations']}
    for image_id in empty:
        yield Finding('remark', 'image without an object', _path(dataset, images[image_id]))


def _wrong_box(x: float, y: float, w: float, h: float, width: int, height: int) -> str | None:
    if w <= 0 or h <= 0:
        return 'box without extent'
    if max(abs(x), abs(y), w, h) <= 1 and min(width, height) > 2:
        return 'box between 0 and 1: not in pixels'
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        return 'box outside its image'
    if x + w > width + 2 or y + h > height + 2:
        corners = w > x and h > y and w <= width and h <= height
        return f'box that reaches out of its image{", and would fit as two corners" if corners else ""}'
    if x < -2 or y < -2:
        return 'box that reaches out of its image'
    return None


def _ask_hotcoco(content: dict, dataset: DataSet) -> Iterator[Finding]:
    """hotcoco's health check, of the data with ids that it takes."""
    if hotcoco is None:
        return
    images = {image['id']: number for number, image in enumerate(content['images'], 1)}
    categories = {category['id']: number for number, category in enumerate(content['categories'], 1)}
    annotations = [a for a in content['annotations'] if a['image_id'] in images and a['category_id'] in categories]
    plain = dict(
        images=[dict(id=images[x['id']], file_name=x['file_name'], width=x['width'], height=x['height'])
                for x in content['images']],
        categories=[dict(id=categories[x['id']], name=str(x['name'])) for x in content['categories']],
        annotations=[dict(id=number, image_id=images[a['image_id']], category_id=categories[a['category_id']],
                          bbox=a['bbox'], area=a.get('area', a['bbox'][2] * a['bbox'][3]),
                          iscrowd=a.get('iscrowd', 0)) for number, a in enumerate(annotations, 1)],
    )  # fmt: skip
    result = hotcoco.COCO(plain).healthcheck()
    for entry in [*result['errors'], *result['warnings']]:
        kind = _HOTCOCO.get(entry['code'])
        for number in entry['affected_ids'] if kind else ():
            annotation = plain['annotations'][number - 1]
            path = _path(dataset, content['images'][annotation['image_id'] - 1])
            x, y, w, h = annotation['bbox']
            label = plain['categories'][annotation['category_id'] - 1]['name']
            yield Finding('remark', kind, path, path, [x, y, x + w, y + h], label)


# ---------------------------------------------------------------------- each image, in processes


def _check_images(content: dict, dataset: DataSet, processes: int) -> Iterator[tuple[str, bytes | None, list[Finding]]]:
    """(path, digest of its content, findings) of each image."""
    annotations: dict[Any, list] = {}
    for annotation in content['annotations']:
        annotations.setdefault(annotation['image_id'], []).append(annotation)
    jobs = [(_path(dataset, image), image, annotations.get(image['id'], []), dataset.load)
            for image in content['images']]  # fmt: skip
    if processes <= 1 or len(jobs) < 50:
        yield from map(_check_image, jobs)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context('fork')) as pool:
        yield from pool.map(_check_image, jobs, chunksize=16)


def _check_image(job: tuple[str, dict, list, dict]) -> tuple[str, bytes | None, list[Finding]]:
    path, image, annotations, options = job
    if not os.path.isfile(path):
        return path, None, [Finding('refused', 'image that is not there', path)]
    found = []
    try:
        LoadImageFromFile(**options).transform(dict(img_path=path, height=image['height'], width=image['width']))
    except UserError as error:
        wrong_size = 'its annotations say' in str(error)
        kind = 'image of another size than annotated' if wrong_size else 'image that cannot be decoded'
        found.append(Finding('refused', kind, one_line(error)))
    for annotation in annotations:
        found += _check_mask(annotation, image, path)
    return path, hashlib.blake2b(Path(path).read_bytes(), digest_size=16).digest(), found


def _check_mask(annotation: dict, image: dict, path: str) -> Iterator[Finding]:
    mask = annotation.get('segmentation')
    if not mask:
        return
    x, y, w, h = annotation['bbox']
    box = [x, y, x + w, y + h]
    try:
        rle = rle_from_coco(mask, image['height'], image['width'])
    except ValueError as error:
        yield Finding('refused', 'invalid mask', f'{path}: {one_line(error)}', path, box)
        return
    if rle is None:
        yield Finding('wrong', 'polygon of fewer than three points, or half a point', path, path, box)
        return
    if mask_utils.area(rle) == 0:
        yield Finding('wrong', 'mask without a pixel', path, path, box)
        return
    covered = mask_utils.toBbox(rle)
    if isinstance(mask, list):  # its vertices tell more exactly: pixels of a tiny object are coarse
        points = np.concatenate([np.ravel(polygon) for polygon in mask]).reshape(-1, 2)
        covered = np.concatenate([points.min(axis=0), points.max(axis=0) - points.min(axis=0)])
    overlap = mask_utils.iou(covered[None], np.array([annotation['bbox']], np.float64), [0])[0, 0]
    if overlap < 0.5 and np.abs(covered - annotation['bbox']).max() >= 2:  # pixels
        yield Finding('wrong', 'mask elsewhere than its box', f'{path}: mask {covered.tolist()}', path, box)
