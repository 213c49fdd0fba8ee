"""`CocoMetric`: COCO's average precision and recall for boxes, masks and proposals."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Sequence

import numpy as np
from mmengine.dist import all_gather_object, broadcast_object_list, collect_results, is_main_process
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger
from pycocotools import mask as coco_mask
from terminaltables import AsciiTable
from torch import Tensor

from mmdet.config.errors import MissingFile, UserError
from mmdet.config.output import write_atomically
from mmdet.config.values import predicted_fields
from mmdet.registry import METRICS
from mmdet.structures.coco_file import category_ids, load_coco_file
from mmdet.structures.masks import check_segmentation

# Ends of the numbers' names -> COCO's ranges of area, as they are numbered in its arrays and called in its lines.
_AREAS = {'': 0, '_s': 1, '_m': 2, '_l': 3}
_AREA_NAMES = ('all', 'small', 'medium', 'large')


@METRICS.register_module()
class CocoMetric(BaseMetric):
    """COCO's metrics over the pictures that were processed, from any number of processes.

    A picture that several processes saw (a sampler pads to equal shares) counts once. Numbers are those of
    pycocotools; faster-coco-eval computes them.

    Args:
        ann_file: annotation file of the data set. With `format_only` it may lack 'annotations'.
        metric: 'bbox', 'segm', 'proposal', or a list of them; 'proposal_fast' of mmdet 3 counts as 'proposal'.
        classwise: log a table of the classes' AP; True returns them as well, 'coco/person_precision' (with 'bbox' and
            'segm' the latter's). Default: the table alone.
        proposal_nums: numbers of proposals per picture at which 'proposal' gives the recall.
        iou_thrs: IoU thresholds; default 0.50, 0.55, ..., 0.95.
        metric_items: names to return of those computed, such as ['mAP', 'mAP_50', 'AR@100'] ('coco/bbox_mAP', for
            proposals 'coco/mAP'); default: the six mAP for bbox and segm, all recalls for proposal.
        format_only: write the result files and compute nothing; needs `outfile_prefix`.
        outfile_prefix: write ``PREFIX.bbox.json`` and so on, in COCO's result format.
        backend: 'faster-coco-eval' or 'pycocotools'.
        offset: 1 for detections of mmdetection 0.x models, whose boxes are x2 - x1 + 1 wide.
        backend_args: mmengine's file backend for the annotation file.
        collect_device, prefix, collect_dir: see mmengine's `BaseMetric`. Without `collect_dir` results travel
            through the process group, so machines need no shared folder.

    Returns from `evaluate` full-precision numbers 'coco/bbox_mAP', 'coco/bbox_mAP_50', 'coco/segm_mAP',
    'coco/AR@100', ... ; -1 where there is no object to find.

    Raises:
        MissingFile: no annotation file.
        UserError: an unknown metric or item; labels beyond the classes; classes or pictures that the
            annotation file does not have; 'segm' without masks; no picture processed.
    """

    default_prefix = 'coco'
    offers = ('bbox', 'segm', 'proposal', 'proposal_fast')  # values of `metric`, which --eval chooses among

    @classmethod
    def check_config(cls, cfg: dict, path: str, whole: dict, training: bool) -> None:
        """Refuse to evaluate masks of a model that says it predicts none."""
        predicted = predicted_fields(whole['model'])
        if 'segm' in cfg.get('metric', ()) and predicted is not None and 'masks' not in predicted:
            model = whole['model']['type']
            raise UserError(f"{path}.metric={cfg['metric']!r}: {model} has no mask head here; use 'bbox'")

    def __init__(
        self,
        ann_file: str | None = None,
        metric: str | Sequence[str] = 'bbox',
        classwise: bool | None = None,
        proposal_nums: Sequence[int] = (100, 300, 1000),
        iou_thrs: float | Sequence[float] | None = None,
        metric_items: Sequence[str] | None = None,
        format_only: bool = False,
        outfile_prefix: str | None = None,
        backend: str = 'faster-coco-eval',
        offset: float = 0.0,
        backend_args: dict | None = None,
        collect_device: str = 'cpu',
        prefix: str | None = None,
        collect_dir: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix, collect_dir=collect_dir)
        names = [metric] if isinstance(metric, str) else metric
        self.metrics = ['proposal' if name == 'proposal_fast' else name for name in names]
        for name in self.metrics:
            if name not in ('bbox', 'segm', 'proposal'):
                raise UserError(f"metric {name!r} is unknown; use 'bbox', 'segm' or 'proposal'")
        if backend not in ('faster-coco-eval', 'pycocotools'):
            raise UserError(f"backend={backend!r} is unknown; use 'faster-coco-eval' or 'pycocotools'")
        if format_only and outfile_prefix is None:
            raise UserError('format_only=True needs outfile_prefix, where to write the result files')
        if not ann_file:
            raise UserError('CocoMetric needs ann_file, the annotation file of the data set it evaluates')
        if '://' not in ann_file and backend_args is None and not os.path.isfile(ann_file):
            raise MissingFile(f"no annotation file {ann_file}; check the evaluator's ann_file")
        self.ann_file = ann_file
        self.classwise = classwise
        self.proposal_nums = tuple(sorted(proposal_nums))
        if iou_thrs is None:
            iou_thrs = np.linspace(0.5, 0.95, 10)
        self.iou_thrs = np.atleast_1d(np.asarray(iou_thrs, dtype=np.float64))
        self.metric_items = metric_items
        self.format_only = format_only
        self.outfile_prefix = outfile_prefix
        self.backend = backend
        self.offset = offset
        self.backend_args = backend_args
        self._truth: _GroundTruth | None = None
        if metric_items is not None:
            self._check_items(metric_items)

    def _max_dets(self, metric: str) -> tuple[int, ...]:
        return self.proposal_nums if metric == 'proposal' else (1, 10, 100)

    def _check_items(self, items: Sequence[str]) -> None:
        known = {n for m in self.metrics for n in summary_items(self._max_dets(m), self.iou_thrs)}
        for item in items:
            if item not in known:
                raise UserError(f'metric item {item!r} is unknown; {self.metrics} give {sorted(known)}')

    @property
    def dataset_meta(self) -> dict | None:
        """What the data set says of itself: dict(classes=(...)). Setting it reads the annotation file, so that a wrong
        one ends a run at its start and not after an epoch."""
        return self._dataset_meta

    @dataset_meta.setter
    def dataset_meta(self, meta: dict) -> None:
        self._dataset_meta = meta
        if self._truth is None and is_main_process() and meta and 'classes' in meta:
            self._truth = self._load_truth()

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        """Keep the predictions of some pictures: dicts (or data samples) with ``img_id`` and
        ``pred_instances`` of bboxes (D, 4), scores (D,), labels (D,) and, for 'segm', masks (D RLE dicts)."""
        num_classes = len(self._classes())
        for sample in data_samples:
            pred = sample['pred_instances'] if isinstance(sample, dict) else sample.pred_instances
            img_id = sample['img_id'] if isinstance(sample, dict) else sample.img_id
            if self._truth is not None:
                self._check_picture(img_id)
            result = dict(
                img_id=img_id,
                bboxes=_array(pred['bboxes']).reshape(-1, 4),
                scores=_array(pred['scores']),
                labels=_array(pred['labels']).astype(np.int64),
            )
            labels = result['labels']
            if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
                wrong = labels.max() if labels.max() >= num_classes else labels.min()
                raise UserError(
                    f'the model predicts label {wrong} on picture {img_id}, but the data set has '
                    f'{num_classes} classes (0 to {num_classes - 1}); make num_classes of the heads and '
                    'metainfo.classes of the data set agree'
                )
            if 'segm' in self.metrics:
                if 'masks' not in pred:
                    raise UserError("metric 'segm' needs masks, but the model predicts none; use 'bbox'")
                result['masks'] = [_rle(m) for m in pred['masks']]
            self.results.append(result)

    def evaluate(self, size: int) -> dict:
        """Metrics over all processes; `size`, the length of the data set, is not needed."""
        if self.collect_dir is not None or self.collect_device != 'cpu':
            every = 2**62  # collect_results would cut what it takes for padding
            gathered = collect_results(self.results, every, self.collect_device, self.collect_dir) or []
        else:
            gathered = [result for part in all_gather_object(self.results) for result in part]
        outcome: dict | Exception | None = None
        if is_main_process():
            try:
                values = self.compute_metrics(gathered)
                outcome = {f'{self.prefix}/{name}': value for name, value in values.items()}
            except Exception as error:  # told to all processes: none is left waiting
                outcome = error
        shared = [outcome]
        broadcast_object_list(shared)
        self.results.clear()
        if isinstance(shared[0], Exception):
            raise outcome or shared[0]
        return shared[0]

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        logger = MMLogger.get_current_instance()
        unique = {result['img_id']: result for result in results}
        if not unique:
            raise UserError('no picture was evaluated; is the test data set empty?')
        if self._truth is None:
            self._truth = self._load_truth()
        truth = self._truth
        for img_id in unique:  # other processes have no truth to ask
            self._check_picture(img_id)
        # in the order of the annotation file's ids: ties between scores are then broken as pycocotools does
        pictures = sorted(unique, key=truth.index.get)
        if self.outfile_prefix is not None:
            for metric in self.metrics:
                path = f'{self.outfile_prefix}.{metric}.json'
                entries = [entry for i in pictures for entry in self._result_entries(unique[i], metric)]
                write_atomically(path, json.dumps(entries).encode())
                logger.info(f'Results written to {path}')
        if self.format_only:
            return {}
        if len(pictures) < len(truth.index):
            logger.warning(
                f'{len(pictures)} of the {len(truth.index)} pictures of {self.ann_file} were evaluated; '
                'the numbers are for those alone'
            )
        values: dict[str, float] = {}
        for metric in self.metrics:
            values.update(self._compute(metric, [unique[i] for i in pictures], logger))
        return values

    def _check_picture(self, img_id) -> None:
        if img_id not in self._truth.index:
            raise UserError(
                f'picture {img_id!r} of the data set is not in {self.ann_file}; '
                'data set and evaluator need the same ann_file'
            )

    def _compute(self, metric: str, results: list[dict], logger: MMLogger) -> dict[str, float]:
        truth = self._truth
        ids = [truth.index[result['img_id']] for result in results]
        max_dets = self._max_dets(metric)
        iou_type = 'segm' if metric == 'segm' else 'bbox'
        detections = self._detections(results, ids, iou_type)
        use_cats = metric != 'proposal'
        try:
            precision, recall = coco_curves(
                truth.dataset, detections, ids, truth.cat_ids, iou_type, self.iou_thrs, max_dets, use_cats, self.backend
            )
        except RuntimeError as error:  # of the engine, about an RLE that it alone looks into
            raise UserError(f'{self.backend} cannot evaluate {metric} on {self.ann_file}: {error}') from error
        summary = summarise(precision, recall, max_dets, self.iou_thrs)
        lines = summary_lines(summary, max_dets, self.iou_thrs)
        if metric == 'proposal':
            lines = [line for line in lines if 'Recall' in line]
        logger.info(f'Evaluation of {metric}, {len(ids)} pictures:\n' + '\n'.join(lines))
        values = {}
        if self.classwise is not False and metric != 'proposal':
            logger.info(f'{metric} by class:\n' + self._class_table(precision, ids))
            if self.classwise:
                values = {f'{c}_precision': _mean(precision[:, :, k, 0, -1]) for k, c in enumerate(self._classes())}
        names, prefix = self.metric_items, '' if metric == 'proposal' else f'{metric}_'
        if names is None:
            names = [n for n in summary if n.startswith('AR' if metric == 'proposal' else 'mAP')]
        return values | {f'{prefix}{n}': summary[n] for n in names if n in summary}

    def _classes(self) -> tuple[str, ...]:
        if not self.dataset_meta or 'classes' not in self.dataset_meta:
            raise UserError("CocoMetric does not know the classes; set dataset_meta=dict(classes=(...))")
        return self.dataset_meta['classes']

    def _load_truth(self) -> _GroundTruth:
        truth = _GroundTruth(self.ann_file, self._classes(), self.backend_args, not self.format_only)
        if 'segm' in self.metrics:
            truth.check_masks()
        return truth

    def _result_entries(self, result: dict, metric: str):
        """COCO result entries of one picture, with its own ids."""
        xywh = _xywh(result['bboxes'], self.offset)
        rows = zip(xywh.tolist(), result['scores'].tolist(), result['labels'])
        for i, (box, score, label) in enumerate(rows):
            cat_id = 1 if metric == 'proposal' else self._truth.cat_ids[label]
            entry = dict(image_id=result['img_id'], category_id=cat_id, score=score)
            if metric == 'segm':  # without a box: pycocotools would take the area from it
                rle = result['masks'][i]
                entry['segmentation'] = dict(size=list(rle['size']), counts=rle['counts'].decode())
            else:
                entry['bbox'] = box
            yield entry

    def _detections(self, results: list[dict], ids: list[int], iou_type: str) -> list[dict]:
        """Detections as the engines hold them. Boxes and areas are known here: letting an engine's `loadRes`
        find them from masks would cost more than the matching."""
        detections = []
        for img_id, result in zip(ids, results):
            if not len(result['scores']):
                continue
            boxes = _xywh(result['bboxes'], self.offset)
            masks = result['masks'] if iou_type == 'segm' else [None] * len(boxes)
            areas = coco_mask.area(masks) if iou_type == 'segm' else boxes[:, 2] * boxes[:, 3]
            rows = zip(boxes.tolist(), result['scores'].tolist(), result['labels'], areas.tolist(), masks)
            for box, score, label, area, mask in rows:
                detection = dict(
                    id=len(detections) + 1,
                    image_id=img_id,
                    category_id=self._truth.cat_ids[label],
                    bbox=box,
                    score=score,
                    area=area,
                    iscrowd=0,
                )
                if mask is not None:
                    detection['segmentation'] = mask
                detections.append(detection)
        return detections

    def _class_table(self, precision: np.ndarray, ids: list[int]) -> str:
        counts = self._truth.objects_per_class(set(ids))
        at = {f'AP{round(t * 100)}': i for i, t in enumerate(self.iou_thrs) if round(t, 3) in (0.5, 0.75)}
        rows = [['class', 'objects', 'AP', *at, 'APs', 'APm', 'APl']]
        for k, name in enumerate(self._classes()):
            p = precision[:, :, k, :, -1]
            cells = [p[:, :, 0], *(p[i, :, 0] for i in at.values()), *(p[:, :, a] for a in (1, 2, 3))]
            rows.append([name, counts[k], *(_percent(_mean(c)) for c in cells)])
        table = AsciiTable(rows)
        table.inner_column_border = False
        table.justify_columns = {i: 'right' for i in range(1, len(rows[0]))}
        return table.table


class _GroundTruth:
    """The annotations of the classes under evaluation, pictures and annotations renumbered from 1.

    Renumbering gives the engines what they take for granted: whole-number picture ids and no annotation
    with id 0, which they would count as unmatched.
    """

    def __init__(
        self, path: str, classes: Sequence[str], backend_args: dict | None, need_annotations: bool
    ) -> None:
        self.path = path
        content = load_coco_file(path, backend_args, need_annotations)
        self.cat_ids = category_ids(content, classes, path)
        wanted = set(self.cat_ids)
        images = sorted(content['images'], key=lambda image: image['id'])
        self.index = {image['id']: number for number, image in enumerate(images, start=1)}
        annotations = []
        for annotation in content.get('annotations', ()):
            if annotation['category_id'] in wanted and annotation['image_id'] in self.index:
                width, height = annotation['bbox'][2:]
                annotations.append(
                    dict(
                        annotation,
                        id=len(annotations) + 1,
                        image_id=self.index[annotation['image_id']],
                        area=annotation.get('area', width * height),
                        iscrowd=annotation.get('iscrowd', 0),
                    )
                )
        self.dataset = dict(
            images=[dict(image, id=number) for number, image in enumerate(images, start=1)],
            annotations=annotations,
            categories=[c for c in content['categories'] if c['id'] in wanted],
        )

    def check_masks(self) -> None:
        """Raise ValueError where an object has no mask, or one of no known form or size."""
        sizes = {image['id']: (image['height'], image['width']) for image in self.dataset['images']}
        for annotation in self.dataset['annotations']:
            segmentation = annotation.get('segmentation')
            if not segmentation:
                raise UserError(f"metric 'segm' needs masks, but objects of {self.path} lack them; use metric='bbox'")
            try:
                check_segmentation(segmentation, *sizes[annotation['image_id']])
            except ValueError as error:
                where = {key: annotation[key] for key in ('category_id', 'bbox')}
                raise UserError(f'{self.path}: the annotation {where}: {error}') from None

    def objects_per_class(self, image_ids: set[int]) -> list[int]:
        label = {cat_id: k for k, cat_id in enumerate(self.cat_ids)}
        counts = [0] * len(label)
        for annotation in self.dataset['annotations']:
            if annotation['image_id'] in image_ids and not annotation['iscrowd']:
                counts[label[annotation['category_id']]] += 1
        return counts


def coco_curves(
    truth: dict,
    detections: list[dict],
    image_ids: Sequence[int],
    cat_ids: Sequence[int],
    iou_type: str,
    iou_thrs: np.ndarray,
    max_dets: Sequence[int],
    use_cats: bool = True,
    backend: str = 'faster-coco-eval',
) -> tuple[np.ndarray, np.ndarray]:
    """Match detections to ground truth with COCO's rules.

    Legend: T IoU thresholds, K classes in the order of `cat_ids` (1 without `use_cats`), A = 4 area ranges
    (all, small, medium, large), M = len(max_dets).

    Returns:
        precision (T, 101, K, A, M) at 101 recalls, recall (T, K, A, M); -1 where there is no object.
    """
    if backend == 'pycocotools':
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    else:
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        gt, dt = COCO(), COCO()
        gt.dataset = truth
        dt.dataset = dict(truth, annotations=detections)
        gt.createIndex()
        dt.createIndex()
        engine = COCOeval(gt, dt, iou_type)
        engine.params.imgIds = list(image_ids)
        engine.params.catIds = list(cat_ids)
        engine.params.iouThrs = iou_thrs
        engine.params.maxDets = list(max_dets)
        engine.params.useCats = int(use_cats)
        engine.evaluate()
        engine.accumulate()
    shape = (len(iou_thrs), len(engine.params.recThrs), len(cat_ids) if use_cats else 1, 4, len(max_dets))
    precision = np.asarray(engine.eval['precision']).reshape(shape)
    recall = np.asarray(engine.eval['recall']).reshape(shape[:1] + shape[2:])
    if use_cats:  # the engines sort the classes by id
        order = np.argsort(np.argsort(cat_ids))
        precision, recall = precision[:, :, order], recall[:, order]
    return precision, recall


def summary_items(max_dets: Sequence[int], iou_thrs: np.ndarray) -> dict[str, tuple]:
    """Names of a summary's numbers, each with (kind, IoU or None, area, position in max_dets)."""
    last = len(max_dets) - 1
    items = {'mAP': ('precision', None, 0, last)}
    items.update({f'mAP_{round(t * 100)}': ('precision', t, 0, last) for t in (0.5, 0.75)})
    items.update({f'mAP{suffix}': ('precision', None, a, last) for suffix, a in _AREAS.items() if a})
    items.update({f'AR@{n}': ('recall', None, 0, i) for i, n in enumerate(max_dets)})
    items.update({f'AR{s}@{max_dets[-1]}': ('recall', None, a, last) for s, a in _AREAS.items() if a})
    return items


def summarise(
    precision: np.ndarray, recall: np.ndarray, max_dets: Sequence[int], iou_thrs: np.ndarray
) -> dict[str, float]:
    """COCO's twelve numbers by name, from the arrays of `coco_curves`; -1 where nothing was to be found."""
    summary = {}
    for name, (kind, iou, area, position) in summary_items(max_dets, iou_thrs).items():
        values = (precision if kind == 'precision' else recall)[..., area, position]
        if iou is not None:
            values = values[np.isclose(iou_thrs, iou)]
        summary[name] = _mean(values)
    return summary


def summary_lines(summary: dict[str, float], max_dets: Sequence[int], iou_thrs: np.ndarray) -> list[str]:
    """The summary as COCO prints it."""
    span = f'{iou_thrs[0]:.2f}:{iou_thrs[-1]:.2f}' if len(iou_thrs) > 1 else f'{iou_thrs[0]:.2f}'
    lines = []
    for name, (kind, iou, area, position) in summary_items(max_dets, iou_thrs).items():
        title = 'Average Precision  (AP)' if kind == 'precision' else 'Average Recall     (AR)'
        threshold = span if iou is None else f'{iou:.2f}'
        lines.append(
            f' {title} @[ IoU={threshold:<9} | area={_AREA_NAMES[area]:>6} '
            f'| maxDets={max_dets[position]:>4} ] = {summary[name]:.3f}'
        )
    return lines


def _mean(values: np.ndarray) -> float:
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else -1.0


def _percent(value: float) -> str:
    return '-' if value < 0 else f'{100 * value:.1f}'


def _array(values) -> np.ndarray:
    return values.detach().float().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _xywh(boxes: np.ndarray, offset: float = 0.0) -> np.ndarray:
    boxes = boxes.astype(np.float64)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2] + offset], axis=1)


def _rle(mask) -> dict:
    """A compressed RLE with counts as bytes, of an RLE dict or of an (H, W) bitmap."""
    if isinstance(mask, dict):
        counts = mask['counts']
        if isinstance(counts, list):
            return coco_mask.frPyObjects(mask, *mask['size'])
        return dict(size=list(mask['size']), counts=counts.encode() if isinstance(counts, str) else counts)
    return coco_mask.encode(np.asfortranarray(_array(mask).astype(np.uint8)))
