"""Dividing annotated images into training and validation, and writing each part as COCO's format has it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pycocotools import mask as mask_utils

from mmdet.datasets.formats.annotated import AnnotatedImage, Notes, Object
from mmdet.structures.masks import rle_from_coco


def split(images: Sequence[AnnotatedImage], fraction: float, seed: int = 0) -> None:
    """Set each image's `split` to 'train' or 'val' so that every class is divided in the same proportion.

    Iterative stratification (Sechidis et al., ECML 2011): images of the class that is left on the fewest go first, each
    to the part that lacks that class most. The same images, fraction and seed give the same split.

    Args:
        fraction: of the images, and of each class's images, for validation.
    """
    order = np.random.default_rng(seed).permutation(len(images)).tolist()
    classes = [{x.name for x in image.objects} or {None} for image in images]
    left = Counter(name for names in classes for name in names)
    shares = dict(train=1 - fraction, val=fraction)
    wanted = {part: {name: share * count for name, count in left.items()} for part, share in shares.items()}
    room = {part: share * len(images) for part, share in shares.items()}
    waiting = dict.fromkeys(order)
    while waiting:
        rarest = min((name for name in left if left[name] > 0), key=lambda name: (left[name], str(name)))
        for index in [i for i in waiting if rarest in classes[i]]:
            part = max(shares, key=lambda p: (wanted[p][rarest], room[p]))
            images[index].split = part
            del waiting[index]
            room[part] -= 1
            for name in classes[index]:
                wanted[part][name] -= 1
                left[name] -= 1


def coco_content(images: Sequence[AnnotatedImage], classes: Sequence[str], folder: Path, notes: Notes) -> dict:
    """COCO's format; the images' names lead from `folder` to where they lie."""
    ids = {name: number for number, name in enumerate(classes, 1)}
    content = dict(
        info=dict(description='made by mmdet convert'),
        images=[],
        annotations=[],
        categories=[dict(id=number, name=name) for name, number in ids.items()],
    )
    for number, image in enumerate(images, 1):
        name = Path(os.path.relpath(os.path.realpath(image.path), os.path.realpath(folder))).as_posix()
        content['images'].append(dict(id=number, file_name=name, height=image.height, width=image.width))
        for item in image.objects:
            entry = _annotation(item, image, notes)
            if entry is not None:
                entry.update(id=len(content['annotations']) + 1, image_id=number, category_id=ids[item.name])
                content['annotations'].append(entry)
    return content


def _annotation(item: Object, image: AnnotatedImage, notes: Notes) -> dict | None:
    limits = np.array([image.width, image.height] * 2)
    given = np.asarray(item.box, dtype=np.float64)
    x1, y1, x2, y2 = given.clip(0, limits).tolist()
    if x2 - x1 < 1 or y2 - y1 < 1:
        notes.add('box under one pixel, or outside its image: left out', image.path)
        return None
    if (np.abs(given - (x1, y1, x2, y2)) > 2).any():
        notes.add("box beyond its image's border: cut there", image.path)
    entry = dict(bbox=[round(side, 3) for side in (x1, y1, x2 - x1, y2 - y1)], area=round((x2 - x1) * (y2 - y1), 3),
                 iscrowd=int(item.crowd))  # fmt: skip
    if item.mask is not None:
        try:
            rle = rle_from_coco(item.mask, image.height, image.width)
        except ValueError as error:
            notes.add('invalid mask: the box alone is kept', f'{image.path}: {error}')
            return entry
        area = float(mask_utils.area(rle)) if rle is not None else 0
        if area == 0:
            notes.add('polygon without area: the box alone is kept', image.path)
        else:
            entry.update(segmentation=item.mask, area=area)
    return entry
