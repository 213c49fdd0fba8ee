"""What saved detections are worth and why, in numbers: plain dataclasses that can be written as JSON.

AP and other shares are between 0 and 1, None where there is nothing to find. `mmdet.evaluation.findings` puts what
stands out into sentences, `mmdet.visualization.report` makes a page of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmdet.config.errors import UserError
from mmdet.evaluation.coco import CocoMetric
from mmdet.evaluation.detections import Counter, Detections, Errors, Judged, Overlaps, best_threshold, errors
from mmdet.evaluation.findings import Finding, area_name, find

_CURVE = np.arange(0, 101, 2)  # recalls of a class's curve, in percent
_MOST_LABEL_ERRORS = 200


@dataclass
class ClassNumbers:
    """One class; precision, recall and F1 at its best threshold, all at IoU 0.5."""

    name: str
    objects: int
    detections: int
    ap: float | None
    ap_50: float | None
    ap_75: float | None
    ap_by_size: dict[str, float | None]
    recall_all: float | None  # of all detections, however low their score
    threshold: float | None = None
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None
    curve: list[float] = field(default_factory=list)  # precision at recall 0, 0.02, ..., 1 at IoU 0.5


@dataclass
class SizeNumbers:
    """Objects of one range of areas."""

    name: str
    limits: list[float]  # square pixels
    objects: int
    ap: float | None
    ar: float | None


@dataclass
class Confusion:
    """Rows: the object's class, columns: the detection's, at IoU 0.5 regardless of class; the last of both: none."""

    classes: list[str]
    matrix: list[list[int]]


@dataclass
class ImageNumbers:
    """One image, with detections from the analysis's threshold on."""

    img_id: Any
    file_name: str
    f1: float
    judged: Judged


@dataclass
class LabelError:
    """A confident detection that the ground truth contradicts: 'missing', or of another class ('class')."""

    img_id: Any
    file_name: str
    kind: str
    score: float
    box: list[float]  # xyxy pixels
    detected: str
    annotated: str | None


@dataclass
class Analysis:
    """What one metric's detections are worth."""

    metric: str  # 'bbox', 'segm' or 'proposal'
    images: int
    images_in_file: int
    objects: int
    crowds: int
    detections: int
    summary: dict[str, float | None]  # as CocoMetric names and counts them
    findings: list[Finding]
    notes: list[str]
    sizes: list[SizeNumbers]
    classes: list[ClassNumbers]
    curves: dict[str, list[float]]  # classes' mean precision at recall 0, 0.01, ..., 1, by IoU and over all
    recall_by_iou: dict[str, float]
    threshold: float  # from which on detections, regardless of class, have the best F1
    tide: dict[str, dict[str, float]] | None = None  # 'cost': AP50 that each kind of error costs; 'count'
    confusion: Confusion | None = None
    calibration: dict[str, Any] | None = None
    label_errors: list[LabelError] = field(default_factory=list)
    worst: list[ImageNumbers] = field(default_factory=list)
    best: list[ImageNumbers] = field(default_factory=list)


def analyse(metric: CocoMetric, name: str, results: Sequence[dict], shown: tuple[int, int] = (6, 3)) -> Analysis:
    """All numbers of one metric.

    Args:
        metric: a `CocoMetric` with its `dataset_meta` set.
        name: 'bbox', 'segm' or 'proposal', one of ``metric.metrics``.
        results: one a different image, as `CocoMetric.checked` gives them.
        shown: how many of the worst and best images to list.

    Raises:
        UserError: no image; hotcoco is not installed.
    """
    if not results:
        raise UserError('the results hold no image')
    counter = Counter(metric, name, [result['number'] for result in results])
    detections = Detections.of(metric, name, results)
    evaluation = counter.evaluate(detections)
    evaluation.accumulate()
    precision, recall = (_or_nan(evaluation.eval[key]) for key in ('precision', 'recall'))
    by_size, gates = _sizes(counter, precision, recall)
    threshold = counter.threshold(detections)
    overlaps = Overlaps(counter, detections)
    found_errors = errors(counter, detections, overlaps)
    analysis = Analysis(
        metric=name,
        images=len(counter.images),
        images_in_file=len(metric.truth.images),
        objects=sum(not one['iscrowd'] for one in counter.objects.values()),
        crowds=sum(bool(one['iscrowd']) for one in counter.objects.values()),
        detections=len(detections),
        summary=_summary(metric, name, precision, recall),
        findings=[],
        notes=[],
        sizes=by_size,
        classes=_classes(counter, detections, precision, recall, gates, found_errors),
        curves={} if name == 'proposal' else _curves(metric, precision),
        recall_by_iou={_two(t): _mean(r) or 0.0 for t, r in zip(metric.iou_thrs, recall[:, :, 0, -1])},
        threshold=threshold,
    )
    analysis.notes = _notes(analysis)
    analysis.findings, repaired = find(counter, detections, threshold)
    if counter.by_class:
        tide = evaluation.tide_errors() if 0.5 in metric.iou_thrs.round(6) else None
        analysis.tide = tide and dict(cost=tide['delta_ap'], count=tide['counts'])
        analysis.confusion = _confusion(counter, evaluation, threshold)
        brief = counter.evaluate(detections, ious=[0.5], brief=True)
        analysis.calibration = brief.calibration(n_bins=10, iou_threshold=0.5)
        analysis.label_errors = _label_errors(counter, repaired, overlaps.in_crowd, threshold)
    analysis.worst, analysis.best = _images(counter, detections, threshold, *shown)
    return analysis


def _or_nan(values: np.ndarray) -> np.ndarray:
    return np.where(values > -1, values, np.nan)


def _mean(values: np.ndarray) -> float | None:
    valid = values[~np.isnan(values)]
    return float(valid.mean()) if valid.size else None


def _two(value: float) -> str:
    return f'{value:.2f}'


def _at(metric: CocoMetric, iou: float) -> np.ndarray:
    return np.isclose(metric.iou_thrs, iou)


def _summary(metric: CocoMetric, name: str, precision: np.ndarray, recall: np.ndarray) -> dict[str, float | None]:
    areas, summary = list(metric.area_ranges), {}
    for item, (kind, iou, area, position) in metric.items(name).items():
        curves = (precision if kind == 'precision' else recall)[..., areas.index(area), position]
        if kind == 'recall' or name != 'proposal':
            summary[item] = _mean(curves if iou is None else curves[_at(metric, iou)])
    return summary


def _sizes(counter: Counter, precision: np.ndarray, recall: np.ndarray) -> tuple[list[SizeNumbers], dict[str, int]]:
    """Numbers of each range of areas, and where the ranges stand among the metric's."""
    rows, gates = [], {}
    for i, (area, (least, most)) in enumerate(counter.metric.area_ranges.items()):
        if area:
            name = area_name(area)
            gates[name] = i
            objects = sum(least <= one['area'] <= most for one in counter.objects.values() if not one['iscrowd'])
            ap = None if counter.name == 'proposal' else _mean(precision[..., i, -1])
            rows.append(SizeNumbers(name, [float(least), float(most)], objects, ap, _mean(recall[..., i, -1])))
    return rows, gates


def _classes(counter: Counter, detections: Detections, precision: np.ndarray, recall: np.ndarray,
             gates: dict[str, int], found: Errors) -> list[ClassNumbers]:
    """One row a class, in the order of the labels. Where classes do not count (proposals), objects and recall."""
    metric, rows = counter.metric, []
    status = np.where(found.right, 1, np.where(found.kinds == '', -1, 0))
    seen = {i for i in found.objects[found.right].tolist()}
    of_class: dict[int, list[int]] = {}
    for key, one in counter.objects.items():
        if not one['iscrowd']:
            of_class.setdefault(one['category_id'], []).append(key)
    for category in counter.truth.categories:
        number, objects = category['id'], of_class.get(category['id'], [])
        met = sum(key in seen for key in objects) / len(objects) if objects else None
        row = ClassNumbers(category['name'], len(objects), 0, None, None, None, {}, met)
        rows.append(row)
        if not counter.by_class:
            continue
        mine, k = detections.categories == number, number - 1  # the engine's order is that of the numbers
        row.detections = int(mine.sum())
        row.ap = _mean(precision[:, :, k, 0, -1])
        row.ap_50, row.ap_75 = (_mean(precision[_at(metric, iou), :, k, 0, -1]) for iou in (0.5, 0.75))
        row.ap_by_size = {size: _mean(precision[:, :, k, i, -1]) for size, i in gates.items()}
        best = best_threshold(detections.scores[mine], status[mine], len(objects))
        if best:
            row.threshold, row.precision, row.recall, row.f1 = best
        if objects and _at(metric, 0.5).any():
            row.curve = precision[_at(metric, 0.5), :, k, 0, -1][0, _CURVE].round(4).tolist()
    return rows


def _curves(metric: CocoMetric, precision: np.ndarray) -> dict[str, list[float]]:
    precision = precision[:, :, ~np.isnan(precision[0, 0, :, 0, -1]), 0, -1]  # (T, R, K)
    if not precision.size:
        return {}
    curves = {_two(t): precision[_at(metric, t)][0].mean(axis=-1) for t in (0.5, 0.75) if _at(metric, t).any()}
    curves['mean'] = precision.mean(axis=(0, 2))
    return {name: curve.round(4).tolist() for name, curve in curves.items()}


def _notes(analysis: Analysis) -> list[str]:
    notes = []
    if analysis.images < analysis.images_in_file:
        notes.append(f'The results hold {analysis.images} of the {analysis.images_in_file} images of the annotation '
                     'file; the numbers are for those alone.')
    empty = [row.name for row in analysis.classes if not row.objects]
    if empty and len(analysis.classes) > len(empty):
        named = f'{", ".join(empty[:5])}{f" and {len(empty) - 5} more" if len(empty) > 5 else ""}'
        counted = sum(row.detections for row in analysis.classes if not row.objects)
        notes.append(f'Without an object on these images, and therefore not in AP: {named} ({counted} detections).')
    if analysis.crowds:
        notes.append(f'{analysis.crowds} annotated crowds count neither as found nor as missed.')
    if not analysis.objects:
        notes.append('These images have no object: AP is not defined.')
    return notes


def _confusion(counter: Counter, evaluation: Any, threshold: float) -> Confusion:
    """In the order of the labels."""
    limit = max(len(counter.objects), 100 * len(counter.images))  # an image's detections of all classes together
    found = evaluation.confusion_matrix(iou_thr=0.5, max_det=limit, min_score=threshold)
    order = [found['cat_ids'].index(category['id']) for category in counter.truth.categories]
    order.append(len(order))
    return Confusion([category['name'] for category in counter.truth.categories],
                     found['matrix'][np.ix_(order, order)].astype(int).tolist())


def _label_errors(counter: Counter, detections: Detections, in_crowd: np.ndarray, threshold: float) -> list[LabelError]:
    """The most confident detections that the ground truth contradicts; `detections` with systematic faults repaired."""
    found = counter.evaluate(detections, ious=[0.5], brief=True).image_diagnostics(0.5, max(threshold, 0.5))
    names = {category['id']: category['name'] for category in counter.truth.categories}
    errors = []
    for one in sorted(found['label_errors'], key=lambda one: -one['dt_score']):
        i = one['dt_id'] - 1
        if in_crowd[i] < 0.5 and len(errors) < _MOST_LABEL_ERRORS:
            x, y, w, h = detections.boxes[i].tolist()
            missing = one['type'] == 'missing_annotation'
            errors.append(LabelError(
                *counter.image(one['image_id']), 'missing' if missing else 'class', one['dt_score'],
                [x, y, x + w, y + h], names[one['dt_category_id']],
                None if missing else names[one['gt_category_id']]))
    return errors


def _images(counter: Counter, detections: Detections, threshold: float, worst: int, best: int) -> tuple[list, list]:
    """The images with the lowest F1, of equal ones those with more errors first, and those with the highest."""
    judged = {number: one for number, one in counter.by_image(detections, threshold).items() if one.right or one.errors}
    rows = [ImageNumbers(*counter.image(number), one.f1, one) for number, one in judged.items()]
    bad = sorted((row for row in rows if row.judged.errors), key=lambda row: (row.f1, -row.judged.errors))[:worst]
    good = sorted((row for row in rows if row.judged.right), key=lambda row: (-row.f1, -len(row.judged.right)))
    return bad, [row for row in good if row not in bad][:best]
