"""Saved detections as columns, their overlaps with the objects, and counting them again after a change.

Legend: D detections and G objects of all images; numbers of images, objects and categories are those of `GroundTruth`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from mmdet.config.errors import UserError
from mmdet.evaluation.coco import CocoMetric
from mmdet.structures.masks import rle_areas

_MIN_OVERLAP = 0.1  # IoU under which TIDE (Bolya et al., 2020) takes a detection for background


@dataclass(frozen=True)
class Detections:
    """Detections of all images, in the order of their images."""

    images: np.ndarray  # (D,) number of the image
    boxes: np.ndarray  # (D, 4) x, y, width, height in pixels
    scores: np.ndarray  # (D,)
    categories: np.ndarray  # (D,) number of the category
    masks: list[dict] | None = None  # D compressed RLEs

    @classmethod
    def of(cls, metric: CocoMetric, name: str, results: Sequence[dict]) -> Detections:
        """`results`: one a different image, as `CocoMetric.checked` gives them; `name`: the metric that counts them."""
        results = sorted(results, key=lambda result: result['number'])
        numbers = [result['number'] for result in results]
        boxes, scores, labels = (np.concatenate([r[key] for r in results]) for key in ('bboxes', 'scores', 'labels'))
        return cls(
            np.repeat(numbers, [len(result['scores']) for result in results]),
            metric.xyxy2bbox(boxes).reshape(-1, 4),
            scores,
            np.ones_like(labels) if name == 'proposal' else metric.truth.numbers[labels],
            [mask for result in results for mask in result['masks']] if name == 'segm' else None,
        )

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, kept: np.ndarray) -> Detections:
        """Those of a boolean mask (D,), or of ascending positions."""
        masks = None if self.masks is None else [self.masks[i] for i in np.arange(len(self))[kept]]
        return Detections(self.images[kept], self.boxes[kept], self.scores[kept], self.categories[kept], masks)


@dataclass(frozen=True)
class Judged:
    """An image's detections from a score on, at IoU 0.5; what counts as neither right nor wrong is left out."""

    right: list[int]  # positions among the image's detections
    wrong: list[int]
    missed: list[int]  # ids of objects in `GroundTruth`

    @property
    def f1(self) -> float:
        """1 where there is nothing to find and nothing found."""
        total = 2 * len(self.right) + len(self.wrong) + len(self.missed)
        return 2 * len(self.right) / total if total else 1.0

    @property
    def errors(self) -> int:
        return len(self.wrong) + len(self.missed)


class Counter:
    """Counts detections on a metric's ground truth, again and again, with hotcoco.

    Args:
        metric: with its `dataset_meta` set.
        name: 'bbox', 'segm' or 'proposal'.
        images: numbers of the images that were evaluated.
        limit: of an image and class so many best detections count, if the metric counts fewer.

    Raises:
        UserError: hotcoco is not installed.
    """

    def __init__(self, metric: CocoMetric, name: str, images: Collection[int], limit: int = 0) -> None:
        try:
            import hotcoco
        except ImportError as error:
            raise UserError(f'analysing detections needs hotcoco ({error}): pip install hotcoco') from None
        self.engine, self.metric, self.name, self.limit = hotcoco, metric, name, limit
        self.truth, self.images = metric.truth, sorted(images)
        self.by_class = metric.params(name, hotcoco).useCats
        self.img_ids = {number: img_id for (_, img_id), number in metric.truth.index.items()}
        self.objects = {one['id']: one for one in metric.truth.of(self.images, name == 'segm')}
        self._coco = self._ground_truth(self.objects.values())

    def image(self, number: int) -> tuple[Any, str]:
        """Id and file name of an image in the annotation file."""
        return self.img_ids[number], self.truth.images[number]['file_name']

    def _ground_truth(self, objects: Collection[dict]) -> Any:
        objects = [dict(one, category_id=one['category_id'] if self.by_class else 1) for one in objects]
        categories = self.truth.categories if self.by_class else [dict(id=1, name='object')]
        images = [self.truth.images[number] for number in self.images]
        return self.engine.COCO(dict(images=images, annotations=objects, categories=categories))

    def evaluate(
        self,
        detections: Detections,
        any_class: bool = False,
        ious: Sequence[float] | None = None,
        without: Collection[int] = (),
        brief: bool = False,
        category: int | None = None,
    ) -> Any:
        """A `hotcoco.COCOeval` whose ``evaluate()`` was called; its detections have the ids 1, ..., D.

        Args:
            any_class: a detection may match an object of any class.
            ious: IoU thresholds; default the metric's.
            without: ids of objects that shall not be there.
            brief: the range of all areas and the largest limit of detections alone.
            category: this one alone.
        """
        truth = self._coco
        if without:
            truth = self._ground_truth([one for key, one in self.objects.items() if key not in without])
        categories = detections.categories if self.by_class else np.ones(len(detections), int)
        rows = np.column_stack([detections.images, detections.boxes, detections.scores, categories]).reshape(-1, 7)
        found = truth.load_res(rows, segmentation=detections.masks) if len(rows) else truth.load_res(rows)
        if detections.masks:
            found.update_anns(ids=np.arange(1, len(rows) + 1), area=rle_areas(detections.masks).astype(float))
        params = self.metric.params(self.name, self.engine)
        evaluation = self.engine.COCOeval(truth, found, params.iouType)
        params.maxDets = [*params.maxDets[:-1], max(params.maxDets[-1], self.limit)]
        if ious is not None:
            params.iouThrs = list(ious)
        if brief:
            params.areaRng, params.areaRngLbl, params.maxDets = [params.areaRng[0]], ['all'], [params.maxDets[-1]]
        params.useCats = self.by_class and not any_class
        params.imgIds = self.images
        params.catIds = sorted(self.truth.numbers.tolist()) if self.by_class else [1]  # as columns of the results
        if category is not None:
            params.catIds = [category]
        evaluation.params = params
        evaluation.evaluate()
        return evaluation

    def class_ap(self, detections: Detections, **options: Any) -> np.ndarray:
        """(K,) AP of each category, NaN where there is nothing to find; `options` as of `evaluate`."""
        evaluation = self.evaluate(detections, brief=True, **options)
        evaluation.accumulate()
        precision = evaluation.eval['precision'][..., 0, -1]
        return np.where(precision > -1, precision, np.nan).mean(axis=(0, 1))

    def ap(self, detections: Detections, **options: Any) -> float:
        """AP, 0 where there is nothing to find; `options` as of `evaluate`."""
        return mean(self.class_ap(detections, **options))

    def right(self, detections: Detections, iou: float = 0.5, any_class: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """What matching at one IoU says of each detection.

        Returns:
            (D,) 1 right, 0 wrong, -1 not counted (on a crowd, or beyond the limit of detections), and (D,) the id of
            the object that it found, or 0.
        """
        diagnosis = self.evaluate(detections, any_class, [iou], brief=True).image_diagnostics(iou_thr=iou)
        status, found = np.full(len(detections), -1), np.zeros(len(detections), int)
        for number, word in diagnosis['dt_status'].items():
            status[number - 1] = word == 'tp'
        for number, which in diagnosis['dt_match'].items():
            found[number - 1] = which
        return status, found


    def threshold(self, detections: Detections) -> float:
        """Score from which on detections, regardless of class, have the best F1 at IoU 0.5; the median score where
        hardly any is right even at IoU 0.1."""
        objects = sum(not one['iscrowd'] for one in self.objects.values())
        for iou in (0.5, 0.1):
            status, _ = self.right(detections, iou, any_class=True)
            best = best_threshold(detections.scores, status, objects)
            if best and best[3] > 0.1:
                return best[0]
        return float(np.median(detections.scores)) if len(detections) else 0.5

    def by_image(self, detections: Detections, threshold: float) -> dict[int, Judged]:
        """What is right on each image, by its number, of the detections from a score on."""
        sure = np.flatnonzero(detections.scores >= threshold)
        status, found = self.right(detections[sure])
        judged = {number: Judged([], [], []) for number in self.images}
        starts = dict(zip(self.images, np.searchsorted(detections.images, self.images).tolist()))
        for i, number, value in zip(sure.tolist(), detections.images[sure].tolist(), status.tolist()):
            if value >= 0:
                (judged[number].right if value else judged[number].wrong).append(i - starts[number])
        found = set(found[status == 1].tolist())
        for key, one in self.objects.items():
            if not one['iscrowd'] and key not in found:
                judged[one['image_id']].missed.append(key)
        return judged


class Overlaps:
    """IoU of every detection with every object that is not a crowd, on each image."""

    def __init__(self, counter: Counter, detections: Detections) -> None:
        self.counter, self.detections = counter, detections
        key = 'bbox' if detections.masks is None else 'segmentation'
        starts = np.searchsorted(detections.images, counter.images)
        ends = np.searchsorted(detections.images, counter.images, side='right')
        self.images: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # positions (d,), ids (g,), IoU (d, g)
        self.in_crowd = np.zeros(len(detections))  # (D,) largest share of it that lies in one crowd
        for number, start, end in zip(counter.images, starts, ends):
            which = np.arange(start, end)
            found = detections.boxes[which] if key == 'bbox' else detections.masks[start:end]
            there = [one for one in counter.truth.objects[number] if one['id'] in counter.objects]
            for crowd in (False, True):
                some = [one for one in there if bool(one['iscrowd']) is crowd]
                ids = np.array([one['id'] for one in some], int)
                iou = np.zeros((len(which), len(ids)))
                if iou.size:
                    iou = coco_mask.iou(found, _stacked([one[key] for one in some], key), [crowd] * len(ids))
                if not crowd:
                    self.images.append((which, ids, np.asarray(iou)))
                elif iou.size:
                    self.in_crowd[which] = np.max(iou, axis=1)

    @cached_property
    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions of detections and ids of objects, of any class, that overlap each other more than any other, and
        by `_MIN_OVERLAP` at least; of equal overlaps, that of the higher score."""
        positions, objects = [], []
        for which, ids, iou in self.images:
            if not iou.size:
                continue
            order = np.argsort(-self.detections.scores[which], kind='stable')
            best = order[iou[order].argmax(axis=0)]  # of each object
            mutual = (iou[best].argmax(axis=1) == np.arange(len(ids))) & (iou.max(axis=0) >= _MIN_OVERLAP)
            positions.append(which[best[mutual]])
            objects.append(ids[mutual])
        if not positions:
            return np.zeros(0, int), np.zeros(0, int)
        return np.concatenate(positions), np.concatenate(objects)

    def best(self, categories: np.ndarray | None = None, same: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """The largest IoU (D,) of each detection and the object's id (0: none); with `categories` (D,), among the
        objects of the same category, or of the others."""
        ious, objects = np.zeros(len(self.detections)), np.zeros(len(self.detections), int)
        for which, ids, iou in self.images:
            if not iou.size:
                continue
            if categories is not None:
                classes = np.array([self.counter.objects[i]['category_id'] for i in ids])
                iou = np.where((categories[which][:, None] == classes) == same, iou, -1)
            ious[which] = np.maximum(iou.max(axis=1), 0)
            objects[which] = np.where(iou.max(axis=1) > 0, ids[iou.argmax(axis=1)], 0)
        return ious, objects


@dataclass(frozen=True)
class Errors:
    """TIDE's kind of error of each wrong detection, at IoU 0.5."""

    kinds: np.ndarray  # (D,) one of `errors`' kinds; '' for what is right or not counted
    right: np.ndarray  # (D,) bool
    objects: np.ndarray  # (D,) id of the object that was found, or meant; 0: none
    ious: np.ndarray  # (D,) IoU with it
    missed: np.ndarray  # ids of objects that no detection found or meant


def errors(counter: Counter, detections: Detections, overlaps: Overlaps) -> Errors:
    """Kinds as in "TIDE" (Bolya et al., 2020): a wrong detection is of the right class on the wrong place ('location',
    IoU 0.1 to 0.5), of the wrong class on the right place ('class'), a second one ('duplicate'), on nothing
    ('background', IoU under 0.1), or on the wrong place and of the wrong class ('both')."""
    status, found = counter.right(detections)
    same, same_object = overlaps.best(detections.categories)
    other, other_object = overlaps.best(detections.categories, same=False)
    wrong = status == 0
    tests = {
        'location': (same >= _MIN_OVERLAP) & (same < 0.5),
        'class': other >= 0.5,
        'duplicate': same >= 0.5,
        'background': np.maximum(same, other) <= _MIN_OVERLAP,
        'both': np.ones(len(detections), bool),
    }
    kinds = np.full(len(detections), '', dtype=object)
    for kind, holds in tests.items():
        kinds[wrong & holds & (kinds == '')] = kind
    of_class = kinds == 'class'
    objects = np.where(status == 1, found, np.where(of_class, other_object, same_object))
    objects[np.isin(kinds, ['background', 'both'])] = 0
    meant = set(objects[(status == 1) | of_class | (kinds == 'location')].tolist())
    missed = [key for key, one in counter.objects.items() if key not in meant and not one['iscrowd']]
    return Errors(kinds, status == 1, objects, np.where(of_class, other, same), np.array(missed, int))


def best_threshold(scores: np.ndarray, right: np.ndarray, objects: int) -> tuple[float, float, float, float] | None:
    """The score from which on detections have the best F1, with precision, recall and F1 there.

    Args:
        scores, right: (D,) of one class; `right` 1, 0, or -1 for what does not count.
        objects: how many there are to find.

    Returns:
        None where nothing is right.
    """
    scores, right = scores[right >= 0], right[right >= 0]
    if not right.any() or not objects:
        return None
    order = np.argsort(-scores, kind='stable')
    scores, hits = scores[order], np.cumsum(right[order])
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + objects)
    f1[:-1][scores[:-1] == scores[1:]] = -1  # a threshold takes all of equal scores
    i = int(f1.argmax())
    return float(scores[i]), float(hits[i] / (i + 1)), float(hits[i] / objects), float(f1[i])


def moved(detections: Detections, shift: np.ndarray, scale: np.ndarray) -> Detections:
    """Boxes or masks with their centres moved by `shift` (2,) or (D, 2) pixels; boxes also scaled by (2,)."""
    size = detections.boxes[:, 2:] * scale
    corner = detections.boxes[:, :2] + detections.boxes[:, 2:] / 2 + shift - size / 2
    masks = detections.masks
    if masks is not None:
        shifts = np.broadcast_to(np.rint(shift).astype(int), (len(detections), 2)).tolist()
        masks = [_moved_mask(mask, *by) if any(by) else mask for mask, by in zip(masks, shifts)]
    return replace(detections, boxes=np.column_stack([corner, size]), masks=masks)


def _moved_mask(mask: dict, dx: int, dy: int) -> dict:
    bitmap = coco_mask.decode(mask)
    height, width = bitmap.shape
    result = np.zeros_like(bitmap, order='F')
    result[max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)] = bitmap[
        max(-dy, 0) : height + min(-dy, 0), max(-dx, 0) : width + min(-dx, 0)]
    return coco_mask.encode(result)


def _stacked(values: list, key: str) -> Any:
    return np.array(values, float).reshape(-1, 4) if key == 'bbox' else values


def mean(values: np.ndarray) -> float:
    """Of those that are numbers; 0 where none is."""
    valid = values[~np.isnan(values)]
    return float(valid.mean()) if valid.size else 0.0
