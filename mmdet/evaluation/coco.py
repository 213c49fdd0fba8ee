"""`CocoMetric`: COCO's average precision and recall for boxes, masks and proposals.

Legend: D detections of an image, T IoU thresholds, R = 101 recalls, K classes (1 without `use_cats`), A area ranges,
M limits of the number of detections.
"""

import contextlib
import io
import json
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from mmengine.dist import get_world_size
from mmengine.logging import MMLogger
from terminaltables import AsciiTable

from mmdet.config.contracts import on_first_call
from mmdet.config.errors import MissingFile, UserError, at_most, say
from mmdet.config.output import write_atomically
from mmdet.config.overrides import refuse_overrides
from mmdet.config.values import predicted_fields
from mmdet.evaluation.gathered import GatheredMetric
from mmdet.evaluation.ground_truth import GroundTruth
from mmdet.evaluation.predictions import checked_predictions, needed_predictions
from mmdet.registry import METRICS

_AREA_NAMES = {'': 'all', '_s': 'small', '_m': 'medium', '_l': 'large'}


@METRICS.register_module()
@refuse_overrides(
    'extend/metric.md', gt_to_coco_json='process', fast_eval_recall='compute_metrics', xyxy2xywh='results2json',
)  # fmt: skip
class CocoMetric(GatheredMetric):
    """COCO's metrics over the images that were processed, by any number of processes.

    Each batch is matched at once and a few kB an image are kept; detections are kept only for result files. An image
    that was processed several times (a sampler pads to equal shares) counts once.

    Args:
        ann_file: annotation file of the data set. With `format_only` it may lack 'annotations'. For a ConcatDataset a
            list, one of each of its data sets: they are evaluated together, and equal ids are kept apart.
        metric: 'bbox', 'segm', 'proposal', or a list of them; 'proposal_fast' of mmdetection 3 counts as 'proposal'.
        classwise: log a table of the classes' AP; True returns them as well, 'coco/person_precision' (with 'bbox' and
            'segm' the latter's). Default: the table alone.
        proposal_nums: `max_dets` of 'proposal', which has no classes.
        iou_thrs: IoU thresholds; default 0.50, 0.55, ..., 0.95.
        metric_items: names to return of those computed, such as ['mAP', 'mAP_50', 'AR@100'] ('coco/bbox_mAP', for
            proposals 'coco/mAP'); default: the six mAP for bbox and segm, all recalls for proposal.
        format_only: write the result files and compute nothing; needs `outfile_prefix`.
        outfile_prefix: write ``PREFIX.bbox.json`` and so on, in COCO's result format.
        backend: 'hotcoco' or 'pycocotools', the slower reference, which also serves where hotcoco is not installed.
        offset: 1 for detections of mmdetection 0.x models, whose boxes are x2 - x1 + 1 wide.
        backend_args: mmengine's file backend for the annotation file.
        collect_device, prefix, collect_dir: see mmengine's `BaseMetric` and `GatheredMetric`.
        max_dets: of an image and class so many best detections count, in 'AR@1', 'AR@10', ...; in AP the last number.
        area_ranges: for 'mAP_NAME' and 'AR_NAME@100' {NAME: (from, to)} in square pixels; default COCO's s, m and l.
        use_cats: False: a detection may match an object of any class.

    Returns from `evaluate` full-precision numbers 'coco/bbox_mAP', 'coco/bbox_mAP_50', 'coco/segm_mAP',
    'coco/AR@100', ... ; -1 where there is no object to find.

    Raises:
        FileNotFoundError: no annotation file.
        UserError: an unknown option; classes or images that the annotation file does not have; 'segm' without masks;
            labels beyond the classes; detections that are not finite; no image processed.
        ValueError: predictions that do not fit one another, or masks that do not fit their image.
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
        ann_file: str | Sequence[str] | None = None,
        metric: str | Sequence[str] = 'bbox',
        classwise: bool | None = None,
        proposal_nums: Sequence[int] = (100, 300, 1000),
        iou_thrs: float | Sequence[float] | None = None,
        metric_items: Sequence[str] | None = None,
        format_only: bool = False,
        outfile_prefix: str | None = None,
        backend: str = 'hotcoco',
        offset: float = 0.0,
        backend_args: dict | None = None,
        collect_device: str = 'cpu',
        prefix: str | None = None,
        collect_dir: str | None = None,
        max_dets: Sequence[int] = (1, 10, 100),
        area_ranges: dict[str, Sequence[float]] | None = None,
        use_cats: bool = True,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix, collect_dir=collect_dir)
        on_first_call(self, 'process', takes=needed_predictions)
        names = [metric] if isinstance(metric, str) else metric
        for name in names:
            if name not in self.offers:
                raise UserError(f"CocoMetric: metric {name!r} is unknown; use 'bbox', 'segm' or 'proposal'")
        self.metrics = ['proposal' if name == 'proposal_fast' else name for name in names]
        if format_only and outfile_prefix is None:
            raise UserError('CocoMetric: format_only=True needs outfile_prefix, where to write the result files')
        if not ann_file:
            raise UserError('CocoMetric needs ann_file, the annotation file of the data set it evaluates')
        ann_files = [ann_file] if isinstance(ann_file, str) else list(ann_file)
        for file in ann_files:
            if '://' not in file and backend_args is None and not os.path.isfile(file):
                raise MissingFile(f"no annotation file {file}; check the evaluator's ann_file")
        for option, limits in dict(max_dets=max_dets, proposal_nums=proposal_nums).items():
            if not limits or not all(isinstance(limit, int) and limit > 0 for limit in limits):
                raise UserError(f'CocoMetric: {option}={limits!r} must be whole numbers above 0, such as (1, 10, 100)')
        self.ann_files, self.ann_file, self.backend_args = ann_files, at_most(ann_files, 3), backend_args
        self.classwise, self.use_cats, self.offset = classwise, use_cats, offset
        self.max_dets = {n: sorted(proposal_nums if n == 'proposal' else max_dets) for n in self.offers[:3]}
        self.iou_thrs = np.atleast_1d(np.linspace(0.5, 0.95, 10) if iou_thrs is None else np.array(iou_thrs, float))
        area_ranges = area_ranges or dict(s=(0, 32**2), m=(32**2, 96**2), l=(96**2, 1e10))
        self.area_ranges = {'': (0, 1e10)} | {f'_{area}': limits for area, limits in area_ranges.items()}
        self.format_only, self.outfile_prefix = format_only, outfile_prefix
        self.metric_items = metric_items
        known = {item for name in self.metrics for item in self.items(name)}
        for item in metric_items or ():
            if item not in known:
                raise UserError(f'CocoMetric: metric item {item!r} is unknown; {self.metrics} give {sorted(known)}')
        self._engine = _engine(backend)
        # As in mmdetection, the files of a subclass that writes its own are what is evaluated.
        self._counts_files = type(self).results2json is not CocoMetric.results2json
        if len(ann_files) > 1 and (outfile_prefix is not None or self._counts_files):
            raise UserError(f'CocoMetric writes result files of one ann_file, of which {len(ann_files)} are given; '
                            'evaluate each by its own metric, with MultiDatasetsEvaluator')
        self._truth: GroundTruth | None = None
        self._passes_over = False  # said

    @property
    def dataset_meta(self) -> dict | None:
        """What the data set says of itself: dict(classes=(...)). Setting it reads the annotation file, so that a wrong
        one ends a run at its start and not after an epoch."""
        return self._dataset_meta

    @dataset_meta.setter
    def dataset_meta(self, meta: dict) -> None:
        self._dataset_meta = meta
        if self._truth is None and meta and 'classes' in meta:
            self._truth = GroundTruth(self.ann_files, meta['classes'], self.backend_args,
                                      'segm' in self.metrics and not self.format_only, not self.format_only)
            if set(self.metrics) != {'proposal'}:
                self._truth.say_if_crowded(max(limits[-1] for n, limits in self.max_dets.items() if n != 'proposal'))
            self._restart()

    @property
    def cat_ids(self) -> list[int]:
        """The annotation file's category id of each label."""
        return self._truth.cat_ids

    @property
    def truth(self) -> GroundTruth:
        """What there is to find, read when `dataset_meta` was set."""
        return self._truth

    def check_dataset(self, dataset: Any) -> None:
        """Raise UserError where a data set holds images that the annotation file lacks, or two images of one id in one
        file, as a ConcatDataset may: predictions are told apart by it."""
        if self._truth is None or not hasattr(dataset, 'get_data_info'):
            return
        paths: dict[int, str | None] = {}
        for info in map(dataset.get_data_info, range(len(dataset))):
            number, path = self._number(info), info.get('img_path')
            if paths.setdefault(number, path) != path:
                raise UserError(f'two images of the data set to evaluate have the id {info["img_id"]!r}, '
                                f'{paths[number]} and {path}: CocoMetric cannot tell them apart. Give it the '
                                'annotation files of a ConcatDataset as a list, ann_file=[...]')

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Count the predictions on some images: dicts (or data samples) with ``img_id`` and ``pred_instances`` of
        bboxes (D, 4) xyxy pixels, scores (D,), labels (D,) and, for 'segm', masks (D RLE dicts or bitmaps)."""
        if self._truth is None:
            raise ValueError('CocoMetric does not know the classes; set dataset_meta=dict(classes=(...))')
        results = list({result['number']: result for result in map(self.checked, data_samples)}.values())
        self._seen.update(result['number'] for result in results)
        if self.outfile_prefix is not None or self._counts_files:
            self.results += results
        for name, stream in self._streams.items() if results and not self._counts_files else ():
            self._count(name, stream, results, self._detections(name, results))

    def evaluate(self, size: int) -> dict:
        """Metrics over all processes; `size`, the length of the data set, is not needed."""
        if self.results and not self._seen:
            raise UserError(f'{type(self).__name__}.process keeps results of its own, which nothing counts: call '
                            "CocoMetric's too, or subclass mmengine.evaluator.BaseMetric (docs/extend/metric.md)")
        self.results = [(self._seen, self.results, self._streams)]
        self._restart()
        return super().evaluate(get_world_size())

    def compute_metrics(self, shares: list[tuple]) -> dict[str, float]:
        """`shares`, one a process: numbers of its images, their predictions if they are kept, its streams."""
        logger = MMLogger.get_current_instance()
        seen = set().union(*(share[0] for share in shares))
        if not seen:
            raise UserError('no image was evaluated; is the test data set empty?')
        streams = {n: self._engine.StreamingEval.merge(share[2][n] for share in shares) for n in self._streams}
        if self.outfile_prefix is not None or self._counts_files:
            unique = {result['number']: result for share in shares for result in share[1]}
            results = [unique[number] for number in sorted(unique)]
            with tempfile.TemporaryDirectory() as folder:
                files = self.results2json(results, self.outfile_prefix or f'{folder}/results')
                if self.outfile_prefix is not None:
                    logger.info(f'Results written to {", ".join(map(str, files.values()))}')
                for name in streams if self._counts_files else ():
                    self._count(name, streams[name], results, self._read(name, files[name]))
        if self.format_only:
            return {}
        if len(seen) < len(self._truth.images):
            say(f'{len(seen)} of the {len(self._truth.images)} images of {self.ann_file} were evaluated; the numbers '
                'are for those alone')
        values: dict[str, float] = {}
        for name, stream in streams.items():
            evaluation = stream.finalize()
            with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
                evaluation.accumulate()
            values |= self._report(name, evaluation.eval['precision'], evaluation.eval['recall'], seen, logger)
        return values

    def results2json(self, results: Sequence[dict], outfile_prefix: str) -> dict[str, str]:
        """Write the result files and return their paths by metric. A subclass may write others: they are evaluated.

        Args:
            results: for each image img_id, bboxes (D, 4) xyxy pixels, scores (D,), labels (D,) and, for 'segm', masks
                (D compressed RLEs).
        """
        files = {}
        for name in self.metrics:
            entries = []
            for result in results:
                boxes, scores = self.xyxy2bbox(result['bboxes']).tolist(), result['scores'].tolist()
                for i, (score, label) in enumerate(zip(scores, result['labels'])):
                    cat_id = 1 if name == 'proposal' else self.cat_ids[label]
                    entry = dict(image_id=result['img_id'], category_id=cat_id, score=score)
                    if name == 'segm':  # without a box: pycocotools would take the area from it
                        mask = result['masks'][i]
                        entry['segmentation'] = dict(mask, counts=mask['counts'].decode())
                    else:
                        entry['bbox'] = boxes[i]
                    entries.append(entry)
            files[name] = f'{outfile_prefix}.{name}.json'
            write_atomically(files[name], json.dumps(entries).encode())
        return files

    def xyxy2bbox(self, boxes: np.ndarray) -> np.ndarray:
        """(..., 4) corners as COCO's x, y, width, height."""
        return np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2] + self.offset], axis=-1)

    # ---------------------------------------------------------------------- what goes into the engine

    def _restart(self) -> None:
        self._seen: set[int] = set()
        self._streams = {} if self.format_only else {name: self._stream(name) for name in self.metrics}

    def _stream(self, name: str) -> Any:
        params = self.params(name, self._engine)
        return self._engine.StreamingEval(self._truth.categories, params.iouType, params=params)

    def params(self, name: str, engine: ModuleType) -> Any:
        """The parameters of hotcoco, or of another engine with its interface, for one of the metrics."""
        params = engine.Params('segm' if name == 'segm' else 'bbox')
        params.iouThrs = self.iou_thrs.tolist()
        params.maxDets = self.max_dets[name]
        params.areaRng = [list(map(float, limits)) for limits in self.area_ranges.values()]
        params.areaRngLbl = list(self.area_ranges)
        params.useCats = self._uses_cats(name)
        return params

    def _uses_cats(self, name: str) -> bool:
        return self.use_cats and name != 'proposal'

    def _number(self, sample: Any) -> int:
        """The number of the image that a data sample, or an image's dict, is of."""
        img_id, source = sample.get('img_id'), 0
        if len(self.ann_files) > 1:
            source = sample.get('dataset_index')
            if source is None or source >= len(self.ann_files):
                raise UserError(f'CocoMetric has {len(self.ann_files)} annotation files, {self.ann_file}: the data set '
                                'must be a ConcatDataset of as many data sets, in the same order')
        if (source, img_id) not in self._truth.index:
            raise UserError(f'image {img_id!r} of the data set is not in {self.ann_files[source]}; data set and '
                            'evaluator need the same ann_file')
        return self._truth.index[source, img_id]

    def checked(self, sample: Any) -> dict:
        """The predictions on one image, see `checked_predictions`, with its number in `truth`."""
        number = self._number(sample)
        image = self._truth.images[number]
        if 'segm' in self.metrics and 'masks' not in sample.get('pred_instances'):
            raise UserError("metric 'segm' needs masks, but the model predicts none; use 'bbox'")
        size = (image['height'], image['width']) if 'segm' in self.metrics else None
        found = dict(checked_predictions(sample, len(self.cat_ids), size), number=number)
        if not self._passes_over and (found['bboxes'][:, 2:] < found['bboxes'][:, :2]).any():
            self._passes_over = True
            say(f'the model predicts boxes of negative size (x2 < x1 or y2 < y1), on image {sample.get("img_id")!r} at '
                "first: COCO's metric passes over them as if they were not there")
        return found

    def _detections(self, name: str, results: Sequence[dict]) -> np.ndarray | list[dict]:
        """Rows of image, x, y, w, h, score, category; for masks, which do not fit into rows, dicts."""
        numbers = [result['number'] for result in results]
        if name != 'segm':
            boxes, scores, labels = (np.concatenate([r[k] for r in results]) for k in ('bboxes', 'scores', 'labels'))
            images = np.repeat(numbers, [len(result['scores']) for result in results])
            return np.column_stack([images, self.xyxy2bbox(boxes), scores, self._truth.numbers[labels]])
        return [dict(image_id=number, category_id=category, score=score, segmentation=mask)
                for number, r in zip(numbers, results) for category, score, mask
                in zip(self._truth.numbers[r['labels']].tolist(), r['scores'].tolist(), r['masks'])]

    def _read(self, name: str, path: str) -> list[dict]:
        """What a result file holds, as `_detections`."""
        key = 'segmentation' if name == 'segm' else 'bbox'
        categories = dict(zip(self.cat_ids, self._truth.numbers.tolist()))
        return [dict(image_id=self._number(dict(img_id=entry['image_id'])), score=entry['score'], **{key: entry[key]},
                     category_id=categories[entry['category_id']] if self._uses_cats(name) else 1)
                for entry in json.loads(Path(path).read_text())]

    def _count(self, name: str, stream: Any, results: Sequence[dict], detections: np.ndarray | list[dict]) -> None:
        numbers = [result['number'] for result in results]
        stream.update([self._truth.images[n] for n in numbers], self._truth.of(numbers, name == 'segm'), detections)

    # ---------------------------------------------------------------------- what comes out of it

    def items(self, name: str) -> dict[str, tuple[str, float | None, str, int]]:
        """Names of a summary's numbers, each with (kind, IoU or None, area range, position in max_dets)."""
        last, areas = self.max_dets[name][-1], [area for area in self.area_ranges if area]
        items = {'mAP': ('precision', None, '', -1), 'mAP_50': ('precision', 0.5, '', -1),
                 'mAP_75': ('precision', 0.75, '', -1)}
        items |= {f'mAP{area}': ('precision', None, area, -1) for area in areas}
        items |= {f'AR@{limit}': ('recall', None, '', i) for i, limit in enumerate(self.max_dets[name])}
        return items | {f'AR{area}@{last}': ('recall', None, area, -1) for area in areas}

    def _report(self, name: str, precision: np.ndarray, recall: np.ndarray, seen: set[int], logger: MMLogger) -> dict:
        """Log the summary of `precision` (T, R, K, A, M) and `recall` (T, K, A, M); returns the numbers asked for."""
        main, prefix = ('AR', '') if name == 'proposal' else ('mAP', f'{name}_')
        span = '{:.2f}:{:.2f}'.format(*self.iou_thrs[[0, -1]]) if len(self.iou_thrs) > 1 else f'{self.iou_thrs[0]:.2f}'
        summary, lines = {}, []
        for item, (kind, iou, area, position) in self.items(name).items():
            curves = (precision if kind == 'precision' else recall)[..., list(self.area_ranges).index(area), position]
            summary[item] = _mean(curves if iou is None else curves[np.isclose(self.iou_thrs, iou)])
            if kind == 'recall' or name != 'proposal':
                title = 'Average Precision  (AP)' if kind == 'precision' else 'Average Recall     (AR)'
                lines.append(f' {title} @[ IoU={span if iou is None else f"{iou:.2f}":<9} '
                             f'| area={_AREA_NAMES.get(area, area[1:]):>6} '
                             f'| maxDets={self.max_dets[name][position]:>4} ] = {summary[item]:.3f}')
        logger.info(f'Evaluation of {name}, {len(seen)} images:\n' + '\n'.join(lines))
        wanted = [item for item in summary if item.startswith(main)] if self.metric_items is None else self.metric_items
        values = {f'{prefix}{item}': summary[item] for item in wanted if item in summary}
        if self.classwise is not False and self._uses_cats(name):
            precision = precision[..., -1][:, :, self._truth.numbers - 1]  # the engine's order is that of the ids
            logger.info(f'{name} by class:\n' + self._class_table(precision, seen))
            if self.classwise:  # after the main numbers: save_best='auto' takes the first
                classes = enumerate(self._dataset_meta['classes'])
                values |= {f'{class_name}_precision': _mean(precision[:, :, k, 0]) for k, class_name in classes}
        return values

    def _class_table(self, precision: np.ndarray, seen: set[int]) -> str:
        """`precision`: (T, R, K, A)."""
        counts = Counter(one['category_id'] for one in self._truth.of(seen, False) if not one['iscrowd'])
        at = {f'AP{round(t * 100)}': i for i, t in enumerate(self.iou_thrs) if round(t, 3) in (0.5, 0.75)}
        rows = [['class', 'objects', 'AP', *at, *(f'AP{area[1:]}' for area in self.area_ranges if area)]]
        for k, name in enumerate(self._dataset_meta['classes']):
            of_class = precision[:, :, k]
            cells = [of_class[..., 0], *of_class[list(at.values()), :, 0], *np.moveaxis(of_class[..., 1:], -1, 0)]
            means = map(_mean, cells)
            rows.append([name, counts[self._truth.numbers[k]], *('-' if m < 0 else f'{100 * m:.1f}' for m in means)])
        table = AsciiTable(rows)
        table.inner_column_border = False
        table.justify_columns = {i: 'right' for i in range(1, len(rows[0]))}
        return table.table


def _engine(backend: str) -> ModuleType:
    """A module with hotcoco's `StreamingEval` and `Params`."""
    if backend not in ('hotcoco', 'pycocotools'):
        raise UserError(f"CocoMetric: backend={backend!r} is unknown; use 'hotcoco' or 'pycocotools'")
    if backend == 'hotcoco':
        try:
            import hotcoco

            return hotcoco
        except ImportError as error:
            say(f'pycocotools evaluates, more slowly, for want of hotcoco ({error}): pip install hotcoco')
    from mmdet.evaluation import pycocotools_stream

    return pycocotools_stream


def _mean(values: np.ndarray) -> float:
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else -1.0
