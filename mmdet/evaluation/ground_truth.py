"""What there is to find in COCO annotation files, as counting engines take it."""

import contextlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmdet.config.errors import UserError, at_most, say
from mmdet.structures.coco_file import category_ids, garbage_kept, load_coco_file
from mmdet.structures.masks import rle_from_coco


class GroundTruth:
    """The objects of some classes, with images, objects and categories numbered from 1.

    Engines need whole-number ids, and pycocotools takes an object of id 0 for unmatched. An id is told apart from an
    equal one in another file: images go by (position of their file, id).

    Args:
        paths, backend_args: the annotation files; without `need_annotations` they may lack 'annotations'.
        classes: names, in the order of the labels.
        with_masks: read masks too; an object without one is left out when masks are counted, as in training.

    Raises:
        UserError: a mask of no known form, or no mask at all; see also `load_coco_file` and `category_ids`.
    """

    @garbage_kept()
    def __init__(self, paths: Sequence[str], classes: Sequence[str], backend_args: dict | None, with_masks: bool,
                 need_annotations: bool) -> None:
        self.path = at_most(paths, 3)
        self.index: dict[tuple[int, Any], int] = {}
        self.images: dict[int, dict] = {}
        self.objects: dict[int, list[dict]] = defaultdict(list)  # of each image's number
        self._total = self._masks = 0
        for source, path in enumerate(paths):
            content = load_coco_file(path, backend_args, need_annotations)
            cat_ids = category_ids(content, classes, path)
            if source == 0:
                self.cat_ids, numbers = cat_ids, _numbered(cat_ids)
                self.numbers = np.array([numbers[cat_id] for cat_id in cat_ids])  # category of each label
                self.categories = [dict(id=int(number), name=name) for number, name in zip(self.numbers, classes)]
            self._add(path, source, content, dict(zip(cat_ids, self.numbers.tolist())), with_masks)
        if with_masks and self._masks == 0 < self._total:
            raise UserError(f"metric 'segm' needs masks, but the objects of {self.path} lack them; use metric='bbox'")
        if with_masks and self._masks < self._total:
            say(f"{self._total - self._masks} of the {self._total} objects of {self.path} have no mask, or polygons of "
                "fewer than three points: they are left out of 'segm', as they are in training")

    def _add(self, path: str, source: int, content: dict, categories: dict[Any, int], with_masks: bool) -> None:
        before = len(self.images)
        index = {img_id: before + n for img_id, n in _numbered([image['id'] for image in content['images']]).items()}
        self.index |= {(source, img_id): number for img_id, number in index.items()}
        self.images |= {index[image['id']]: dict(
            id=index[image['id']], height=int(image['height']), width=int(image['width']),
            file_name=str(image.get('file_name', ''))
        ) for image in content['images']}
        for annotation in content.get('annotations', ()):
            if annotation['category_id'] not in categories or annotation['image_id'] not in index:
                continue
            self._total += 1
            image = self.images[index[annotation['image_id']]]
            found = dict(
                id=self._total, image_id=image['id'], category_id=categories[annotation['category_id']],
                bbox=annotation['bbox'], iscrowd=int(annotation.get('iscrowd', 0)),
                area=annotation.get('area', annotation['bbox'][2] * annotation['bbox'][3]))
            self.objects[image['id']].append(found)
            if with_masks:
                try:
                    mask = rle_from_coco(annotation.get('segmentation'), image['height'], image['width'])
                except ValueError as error:
                    where = {key: annotation[key] for key in ('image_id', 'category_id', 'bbox')}
                    raise UserError(f'{path}: the annotation {where}: {error}') from None
                if mask is not None:
                    found['segmentation'] = mask
                    self._masks += 1

    def of(self, numbers: Sequence[int], with_masks: bool) -> list[dict]:
        """The objects of some images; `with_masks`: those that have one."""
        found = [found for number in numbers for found in self.objects[number]]
        return [one for one in found if 'segmentation' in one] if with_masks else found

    def say_if_crowded(self, limit: int) -> None:
        """One line where images have more objects of a class than the `limit` of detections that count."""
        most = [max(Counter(one['category_id'] for one in found if not one['iscrowd']).values(), default=0)
                for found in self.objects.values()]
        over = [count for count in most if count > limit]
        if over:
            say(f'{len(over)} images of {self.path} have more than {limit} objects of a class, at most {max(over)}. '
                f"Of each image and class CocoMetric counts the {limit} best detections, as COCO does. To count more: "
                f'max_dets=(1, 10, {max(over)}) of CocoMetric, and max_per_img of model.test_cfg')

    def say_if_more_than_found(self, limit: int) -> None:
        """One line where images have more objects than the `limit` of detections that a model gives of one."""
        counts = [sum(not one['iscrowd'] for one in found) for found in self.objects.values()]
        over = [count for count in counts if count > limit]
        if over:
            say(f'{len(over)} images of {self.path} have more than {limit} objects, at most {max(over)}: the model '
                f'finds no more than max_per_img={limit} of model.test_cfg')


def _numbered(ids: Sequence) -> dict[Any, int]:
    """1, 2, ... for ids in ascending order, in which ties between scores are broken; of several kinds, as they come."""
    with contextlib.suppress(TypeError):
        ids = sorted(ids)
    return {which: number for number, which in enumerate(ids, start=1)}
