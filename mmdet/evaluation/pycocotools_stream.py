"""The part of hotcoco's interface that `CocoMetric` uses, with pycocotools underneath.

Same numbers, more slowly, and all detections are kept until the end: the reference, and the stand-in where hotcoco is
not installed.
"""

import contextlib
import io
from collections.abc import Iterable, Sequence

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params

__all__ = ['Params', 'StreamingEval']


class StreamingEval:
    """Objects and detections of the images seen so far. See `hotcoco.StreamingEval`."""

    def __init__(self, categories: list[dict], iou_type: str, params: Params) -> None:
        self.categories, self.iou_type, self.params = categories, iou_type, params
        self.images: dict[int, tuple[dict, list[dict], list[dict]]] = {}  # id: (image, objects, detections)

    def update(self, images: list[dict], gt_anns: list[dict], dt_anns: Sequence[dict] | np.ndarray) -> None:
        """Add images: `dt_anns` is an array with rows image id, x, y, w, h, score, category id, or a list of dicts."""
        new = {image['id']: (image, [], []) for image in images}
        for annotation in gt_anns:
            new[annotation['image_id']][1].append(annotation)
        for row in dt_anns:
            if not isinstance(row, dict):
                image_id, *box, score, category_id = row.tolist()
                row = dict(image_id=int(image_id), bbox=box, score=score, category_id=int(category_id))
            area = coco_mask.area(row['segmentation']) if 'segmentation' in row else row['bbox'][2] * row['bbox'][3]
            new[row['image_id']][2].append(dict(row, area=area, iscrowd=0))
        self.images |= new

    @classmethod
    def merge(cls, parts: Iterable['StreamingEval']) -> 'StreamingEval':
        first, *others = parts
        for other in others:
            first.images |= other.images
        return first

    def finalize(self) -> COCOeval:
        """An evaluator whose `accumulate` may be called."""
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            sides = COCO(), COCO()
            for side, coco in enumerate(sides, start=1):
                found = [annotation for image in self.images.values() for annotation in image[side]]
                annotations = [dict(annotation, id=number) for number, annotation in enumerate(found, start=1)]
                images = [image for image, *_ in self.images.values()]
                coco.dataset = dict(images=images, annotations=annotations, categories=self.categories)
                coco.createIndex()
            evaluation = COCOeval(*sides, self.iou_type)
            self.params.imgIds = sorted(self.images)
            self.params.catIds = sorted(category['id'] for category in self.categories)
            evaluation.params = self.params
            evaluation.evaluate()
        return evaluation
