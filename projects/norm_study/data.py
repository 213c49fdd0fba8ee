"""Small images to classify: sklearn's digits, and crops of the objects of COCO-format data sets.

n    images; C, H, W as usual
"""

import json
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

CROP = 16  # px
COCO_CLASSES = ('person', 'kitchen', 'furniture', 'food', 'vehicle', 'animal')  # supercategories with most objects


class Images(NamedTuple):
    images: Tensor  # (n, C, H, W) float32, zero mean and unit deviation over the training set
    labels: Tensor  # (n,) int64
    photos: Tensor  # (n,) int64: the photograph that a crop comes from; the image itself where there is none


class Split(NamedTuple):
    train: Images
    test: Images
    classes: int


def _digits() -> Split:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float()[:, None]
    labels = torch.from_numpy(bunch.target).long()
    # A fixed test set; a small training set, or every norm reaches 99 %.
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    test, train = order[:1000], order[1000:1300]
    return _standardised(
        *(Images(images[part], labels[part], torch.arange(len(part))) for part in (train, test)), 10
    )


def _standardised(train: Images, test: Images, classes: int) -> Split:
    mean, std = train.images.mean((0, 2, 3), keepdim=True), train.images.std((0, 2, 3), keepdim=True)
    return Split(*(part._replace(images=(part.images - mean) / std) for part in (train, test)), classes)


def object_crops(annotations: Path, folder: Path, label_of: Callable) -> Iterator[tuple[np.ndarray, Any, int]]:
    """Every object of at least 16 px, not a crowd, with a tenth of its size around it.

    Args:
        label_of: of a category; objects whose label is None are left out.

    Returns:
        of each object the crop (H, W, 3) in BGR, its label, and the id of its photograph.
    """
    data = json.loads(annotations.read_text())
    categories = {category['id']: category for category in data['categories']}
    objects = {}
    for a in data['annotations']:
        label = label_of(categories[a['category_id']])
        if label is not None and not a.get('iscrowd') and min(a['bbox'][2:]) >= 16:
            objects.setdefault(a['image_id'], []).append((a['bbox'], label))
    for info in data['images']:
        if info['id'] not in objects:
            continue
        photo = cv2.imread(str(folder / info['file_name']))
        if photo is None:
            raise ValueError(f'{folder / info["file_name"]} is not an image that OpenCV can read')
        for (x, y, w, h), label in objects[info['id']]:
            left, top = max(int(x - w / 10), 0), max(int(y - h / 10), 0)
            yield photo[top : int(y + h * 1.1) + 1, left : int(x + w * 1.1) + 1], label, info['id']


def _crops(annotations: Path, folder: Path, label_of: Callable) -> Images:
    crops, labels, photos = zip(*object_crops(annotations, folder, label_of))
    images = [cv2.resize(crop, (CROP, CROP), interpolation=cv2.INTER_AREA).transpose(2, 0, 1) for crop in crops]
    return Images(torch.from_numpy(np.stack(images)).float(), torch.tensor(labels), torch.tensor(photos))


def _cells(root: Path) -> Split:
    names = ('RBC', 'WBC', 'Platelets')
    parts = [
        _crops(
            root / 'bccd' / part / 'instances.json',
            root / 'bccd' / part / 'images',
            lambda c: names.index(c['name']),
        )
        for part in ('train', 'val')
    ]
    return _standardised(*parts, len(names))


def coco_label(category: dict) -> int | None:
    """The place of a category's supercategory in COCO_CLASSES."""
    name = category['supercategory']
    return COCO_CLASSES.index(name) if name in COCO_CLASSES else None


def _coco(root: Path) -> Split:
    parts = [
        _crops(root / 'coco_dev' / 'annotations' / f'instances_{part}.json', root / 'coco_dev' / part, coco_label)
        for part in ('train2017', 'val2017')
    ]
    return _standardised(*parts, len(COCO_CLASSES))


def _even(part: Images) -> Images:
    """The crops of each photograph brought to zero mean and unit deviation, colour by colour."""
    images = part.images.clone()
    for photo in part.photos.unique():
        own = images[part.photos == photo]
        deviation, mean = torch.std_mean(own, (0, 2, 3), keepdim=True)
        images[part.photos == photo] = (own - mean) / (deviation + 0.05)
    return part._replace(images=images)


@lru_cache
def load(name: str, root: Path | None) -> Split:
    """'digits' (needs scikit-learn), or 'cells' and 'coco': crops from ``root``/bccd and ``root``/coco_dev.

    'cells-even' are the cells without their photograph's light and stain.
    """
    if name == 'cells-even':
        cells = load('cells', root)
        return cells._replace(train=_even(cells.train), test=_even(cells.test))
    if name == 'digits':
        return _digits()
    folder = {'cells': 'bccd', 'coco': 'coco_dev'}[name]
    if root is None or not (root / folder).is_dir():
        raise FileNotFoundError(f'the regime needs {folder}/ in the folder given by --data, not in {root}')
    return _cells(root) if name == 'cells' else _coco(root)


def batches(data: Images, kind: str, batch: int, iterations: int, seed: int) -> Tensor:
    """(iterations, batch) indices into ``data``; each place of each batch is uniform over ``data``.

    'iid': epochs of permutations. 'class' and 'photo': the batch's first member is drawn, the others from its
    class or its photograph, with replacement.
    """
    rng = np.random.default_rng(seed)
    count = len(data.labels)
    if kind == 'iid':
        epochs = -(-iterations * batch // count)
        order = np.concatenate([rng.permutation(count) for _ in range(epochs)])[: iterations * batch]
        return torch.from_numpy(order).view(iterations, batch)
    groups = (data.labels if kind == 'class' else data.photos).numpy()
    members = {group: np.flatnonzero(groups == group) for group in np.unique(groups)}
    first = rng.integers(count, size=iterations)
    rest = [rng.choice(members[groups[i]], size=batch - 1) for i in first]
    return torch.from_numpy(np.concatenate([first[:, None], np.stack(rest)], 1)).long()
