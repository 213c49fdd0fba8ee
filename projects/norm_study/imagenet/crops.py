"""A miniature of ImageNet, to try the classification study: the objects of a COCO-format data set in class folders.

    python -m projects.norm_study.imagenet.crops --data DIR --out FOLDER

DIR holds coco_dev/ with annotations/, train2017/ and val2017/. FOLDER gets train/CLASS/ and val/CLASS/, one PNG
an object. The classes are the six supercategories with most objects.
"""

import argparse
import itertools
from pathlib import Path

import cv2

from projects.norm_study.data import COCO_CLASSES, coco_label, object_crops

LARGEST = 128  # px; longer sides are shrunk to it


def write_crops(root: Path, out: Path) -> dict[str, int]:
    """Returns how many images each part has."""
    counts = {}
    for part in ('train', 'val'):
        for name in COCO_CLASSES:
            (out / part / name).mkdir(parents=True, exist_ok=True)
        found = object_crops(root / 'annotations' / f'instances_{part}2017.json', root / f'{part}2017', coco_label)
        for number, (crop, label, photo) in zip(itertools.count(), found):
            scale = min(LARGEST / max(crop.shape[:2]), 1)
            crop = cv2.resize(crop, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            cv2.imwrite(str(out / part / COCO_CLASSES[label] / f'{photo}_{number}.png'), crop)
            counts[part] = number + 1
    return counts


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, required=True, help='folder with coco_dev/')
    parser.add_argument('--out', type=Path, required=True)
    args = parser.parse_args()
    print(write_crops(args.data / 'coco_dev', args.out))
