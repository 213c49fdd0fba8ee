"""`VOCMetric`: Pascal VOC's average precision.

Legend: D detections of an image, G objects on it, T IoU thresholds, K classes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.logging import MMLogger
from terminaltables import AsciiTable

from mmdet.config.contracts import on_first_call
from mmdet.config.errors import UserError
from mmdet.evaluation.gathered import GatheredMetric
from mmdet.evaluation.predictions import checked_predictions, needed_predictions
from mmdet.registry import METRICS
from mmdet.structures.boxes import box_iou

_FALSE, _TRUE, _IGNORED = range(3)  # what a detection is at a threshold


@METRICS.register_module()
class VOCMetric(GatheredMetric):
    """Average precision as the development kits of Pascal VOC 2007 and 2012 count it, over any number of processes.

    Each detection, the best first, goes to the object of its class that it overlaps most. It is right if their IoU
    reaches the threshold and no detection before it was right there; if that object is ignored (VOC: difficult) it does
    not count at all; else it is wrong. What there is to find comes with the data samples: the test pipeline needs
    ``LoadAnnotations`` after its last step that moves pixels, so that boxes are those of the original image.

    Args:
        iou_thrs: one IoU threshold or several.
        metric: 'mAP'.
        eval_mode: '11points', the mean of the best precisions at recalls of at least 0, 0.1, ..., 1 (VOC 2007), or
            'area' under the curve of best precisions (VOC from 2010 on).
        offset: 1 for detections that name the last pixel of an object and not its right and lower edge, as those of
            mmdetection's models of Pascal VOC.
        collect_device, prefix, collect_dir: see mmengine's `BaseMetric` and `GatheredMetric`.

    Returns from `evaluate` full-precision 'pascal_voc/mAP', the mean over classes and thresholds, and 'pascal_voc/AP50'
    and so on for each threshold. Classes without an object to find are left out of means; -1 where there is none.

    Raises:
        UserError: an unknown option; data samples without ground truth; labels beyond the classes; detections that are
            not finite; no image processed.
    """

    default_prefix = 'pascal_voc'
    offers = ('mAP',)  # values of `metric`, which --eval chooses among
    counts_loaded_annotations = True  # the engine looks whether the pipeline loads them, where it should

    def __init__(
        self,
        iou_thrs: float | Sequence[float] = 0.5,
        metric: str | Sequence[str] = 'mAP',
        eval_mode: str = 'area',
        offset: float = 0.0,
        collect_device: str = 'cpu',
        prefix: str | None = None,
        collect_dir: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix, collect_dir=collect_dir)
        on_first_call(self, 'process', takes=needed_predictions)
        if [metric] != ['mAP'] and list(metric) != ['mAP']:
            raise UserError(f"VOCMetric: metric {metric!r} is unknown; use 'mAP'")
        if eval_mode not in ('11points', 'area'):
            raise UserError(f"VOCMetric: eval_mode {eval_mode!r} is unknown; use '11points' (VOC 2007) or 'area'")
        self.offset = offset
        self.iou_thrs = np.atleast_1d(np.array(iou_thrs, dtype=float))
        self.names = [f'AP{round(threshold * 100):02}' for threshold in self.iou_thrs]
        if not len(self.names) or not ((self.iou_thrs > 0) & (self.iou_thrs <= 1)).all():
            raise UserError(f'VOCMetric: iou_thrs={iou_thrs!r} must be numbers above 0, at most 1')
        if len(set(self.names)) < len(self.names):
            raise UserError(f'VOCMetric: iou_thrs={iou_thrs!r} must differ by a hundredth or more')
        self.average_precision = eleven_points if eval_mode == '11points' else area_under_curve

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Judge the predictions on some images: dicts (or data samples) with ``pred_instances``, ``gt_instances`` and
        ``ignored_instances`` of bboxes (., 4) xyxy pixels and labels (.,), and scores (D,) of the predictions."""
        count = len(self.dataset_meta['classes'])
        self.results += [self._judged(sample, checked_predictions(sample, count), count) for sample in data_samples]

    def compute_metrics(self, results: list[tuple]) -> dict[str, float]:
        """`results`, one an image: labels (D,), scores (D,), judgements (D, T), numbers of objects (K,)."""
        if not results:
            raise UserError('no image was evaluated; is the test data set empty?')
        labels, scores, judgements = (np.concatenate(parts) for parts in list(zip(*results))[:3])
        objects = sum(result[3] for result in results)
        order = np.argsort(-scores, kind='stable')  # of equal scores the earlier image's first, as in the kit
        labels, judgements = labels[order], judgements[order]
        found = [judgements[labels == k] for k in range(len(objects))]
        # (K, T); nan where there is nothing to find
        precisions = np.array([[self.average_precision(of_class[:, t], total) for t in range(len(self.names))]
                               for of_class, total in zip(found, objects)])  # fmt: skip
        self._log(found, objects, precisions, len(results))
        means = precisions[objects > 0].mean(axis=0) if objects.any() else np.full(len(self.names), -1.0)
        return dict(mAP=float(means.mean())) | {name: float(mean) for name, mean in zip(self.names, means)}

    def _judged(self, sample: Any, found: dict, num_classes: int) -> tuple[np.ndarray, ...]:
        truth, ignored = ((sample.get(key) or {}) for key in ('gt_instances', 'ignored_instances'))
        if 'bboxes' not in truth or 'labels' not in truth:
            raise UserError("VOCMetric needs the objects of each image: put dict(type='LoadAnnotations', "
                            'with_bbox=True) after Resize in the test pipeline')
        parts = [part for part in (truth, ignored) if 'bboxes' in part]
        boxes, labels = (torch.cat([part[key].cpu() for part in parts]) for key in ('bboxes', 'labels'))
        counts = torch.arange(len(labels)) < len(truth['labels'])
        detected = found['bboxes'] + [0, 0, self.offset, self.offset]
        judgements = np.full((len(found['labels']), len(self.names)), _FALSE, dtype=np.int8)
        for label in set(found['labels'].tolist()):
            which = np.flatnonzero(found['labels'] == label)
            which = which[np.argsort(-found['scores'][which], kind='stable')]
            own = labels == label
            overlaps = box_iou(torch.from_numpy(detected[which]), boxes[own].double()).numpy()
            judgements[which] = _judge(overlaps, counts[own].numpy(), self.iou_thrs)
        objects = np.bincount(labels[counts].numpy(), minlength=num_classes)
        return found['labels'], found['scores'], judgements, objects

    def _log(self, found: list[np.ndarray], objects: np.ndarray, precisions: np.ndarray, images: int) -> None:
        rows = [['class', 'objects', 'detections', 'recall', *self.names]]
        for name, of_class, total, values in zip(self.dataset_meta['classes'], found, objects, precisions):
            recall = (of_class[:, 0] == _TRUE).sum() / total if total else np.nan
            rows.append([name, total, len(of_class), *map(_percent, (recall, *values))])
        if objects.any():
            rows.append(['mean', objects.sum(), sum(map(len, found)), '', *map(_percent, np.nanmean(precisions, 0))])
        table = AsciiTable(rows)
        table.inner_column_border = False
        table.justify_columns = {i: 'right' for i in range(1, len(rows[0]))}
        at = f'at an IoU of {self.iou_thrs[0]:.2f}'
        MMLogger.get_current_instance().info(f'Pascal VOC, {images} images (recall {at}):\n{table.table}')


def _judge(overlaps: np.ndarray, counts: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """What each detection is (D, T), from its IoU with each object of its class (D, G), best detection first; `counts`
    (G,) is False for ignored objects."""
    judgements = np.full((len(overlaps), len(thresholds)), _FALSE, dtype=np.int8)
    if not overlaps.size:
        return judgements
    taken = np.zeros((overlaps.shape[1], len(thresholds)), dtype=bool)
    for judgement, row in zip(judgements, overlaps):
        nearest = row.argmax()  # also where it is taken already: another object is not looked for
        reached = row[nearest] >= thresholds
        if not counts[nearest]:
            judgement[reached] = _IGNORED
        else:
            judgement[reached & ~taken[nearest]] = _TRUE
            taken[nearest] |= reached
    return judgements


def _curve(judgements: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Right detections so far, and the precision, after each one that counts."""
    right = (judgements[judgements != _IGNORED] == _TRUE).cumsum()
    return right, right / np.arange(1, len(right) + 1)


def eleven_points(judgements: np.ndarray, total: int) -> float:
    """Average precision of VOC 2007, from what each detection (D,) is, best first, and the number of objects.

    Recalls are compared as whole numbers: 3 of 10 do reach 0.3, which no sum of 0.1 in floating point says.
    """
    if not total:
        return np.nan
    right, precision = _curve(judgements)
    return sum(precision[10 * right >= step * total].max(initial=0) for step in range(11)) / 11


def area_under_curve(judgements: np.ndarray, total: int) -> float:
    """Average precision of VOC 2010 and later: at each object that is found the best precision from there on."""
    if not total:
        return np.nan
    right, precision = _curve(judgements)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return best[np.diff(right, prepend=0) > 0].sum() / total


def _percent(value: float) -> str:
    return '-' if np.isnan(value) else f'{100 * value:.1f}'
