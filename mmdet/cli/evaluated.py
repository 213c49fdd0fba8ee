"""What `analyze` and `compare` start from: a config's ground truth and detections that were saved."""

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mmdet.config.errors import MissingFile, UserError, at_most, one_line, say

_MOST_DRAWN = 100  # detections of an image
_KNOWN = 'a .pkl of mmdet test --out or a .json of COCO results is needed'


class Evaluated:
    """The test set of a config, with its `CocoMetric`.

    Args:
        config, options: a config file and its --cfg-options.
        kinds: metrics to compute instead of the config's.

    Raises:
        UserError: no CocoMetric in test_evaluator; a wrong config.
    """

    def __init__(self, config: str, options: dict | None = None, kinds: Sequence[str] | None = None) -> None:
        from mmengine.registry import init_default_scope

        from mmdet.config.load import check_types, load_config
        from mmdet.config.values import class_of
        from mmdet.evaluation import CocoMetric
        from mmdet.registry import DATASETS, METRICS

        cfg = load_config(config, options or {})
        check_types(cfg)
        if cfg.get('test_evaluator') is None or cfg.get('test_dataloader') is None:
            raise UserError(f'{config} has no test_dataloader and test_evaluator: nothing to compare results with')
        evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, (list, tuple)) else [cfg.test_evaluator]
        mine = [one for one in evaluators if issubclass(class_of(one), CocoMetric)]
        if not mine:
            raise UserError(f'{config}: test_evaluator has no CocoMetric. Make a COCO file of the annotations (mmdet '
                            "convert) and set test_evaluator=dict(type='CocoMetric', ann_file=...)")
        if not isinstance(mine[0].get('ann_file'), str):
            raise UserError(f'{config}: test_evaluator has several annotation files; choose one data set, such as '
                            '--cfg-options test_evaluator.ann_file=one.json')
        given = {key: value for key, value in mine[0].items() if key not in ('format_only', 'outfile_prefix')}
        init_default_scope('mmdet')
        dataset = dict(cfg.test_dataloader.dataset, lazy_init=True)
        self.dataset = DATASETS.build(dataset | (dict(pipeline=[]) if 'pipeline' in dataset else {}))
        self.metric = METRICS.build(dict(given, backend='hotcoco', **(dict(metric=list(kinds)) if kinds else {})))
        self.classes = tuple(self.dataset.metainfo['classes'])
        self.metric.dataset_meta = dict(classes=self.classes)
        self.chosen = bool(kinds)

    @cached_property
    def paths(self) -> dict[Any, str]:
        """Path of each image of the data set, by its id. Only who draws needs the images."""
        self.dataset.full_init()
        infos = map(self.dataset.get_data_info, range(len(self.dataset)))
        return {info['img_id']: info['img_path'] for info in infos}

    def columns(self, img_id: Any, name: str, shown: dict[str, tuple[dict, Any]]) -> list[tuple[str, str]]:
        """An image drawn with its ground truth and with detections, as the pages show them side by side. Objects that
        the first of them missed are drawn as missed.

        Args:
            name: the metric; masks are drawn for 'segm'.
            shown: title of each drawing: detections as `CocoMetric.checked` gives them, and their `Judged`.
        """
        truth, number = self.metric.truth, self.metric.truth.index[0, img_id]
        objects = [one for one in truth.of([number], name == 'segm') if not one['iscrowd']]
        boxes = np.array([one['bbox'] for one in objects], float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = {int(category): label for label, category in enumerate(truth.numbers)}
        there = dict(bboxes=boxes, labels=np.array([labels[one['category_id']] for one in objects], int))
        if name == 'segm':
            there['masks'] = [one['segmentation'] for one in objects]
        missed = {key for _, judged in list(shown.values())[:1] for key in judged.missed}
        drawings = [('ground truth', self._image(img_id, there, [one['id'] not in missed for one in objects]))]
        for title, (result, judged) in shown.items():
            right = {i: True for i in judged.right} | {i: False for i in judged.wrong}
            best = sorted(right, key=lambda i: -result['scores'][i])[:_MOST_DRAWN]
            found = {key: result[key][best] for key in ('bboxes', 'scores', 'labels')}
            if name == 'segm':
                found['masks'] = [result['masks'][i] for i in best]
            drawings.append((title, self._image(img_id, found, [right[i] for i in best])))
        return drawings

    def _image(self, img_id: Any, columns: dict[str, Any], good: list[bool]) -> str:
        import torch
        from mmengine.structures import InstanceData

        from mmdet.visualization.report import draw

        tensors = {key: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for key, x in columns.items()}
        return self._drawn(draw, img_id, InstanceData(**tensors), self.classes, good)

    def crop(self, img_id: Any, box: list[float], class_name: str, score: float) -> str:
        """The surroundings of one detection as a data URI."""
        from mmdet.visualization.report import draw_crop

        return self._drawn(draw_crop, img_id, box, self.classes.index(class_name), score, self.classes)

    def _drawn(self, how: Callable[..., str], img_id: Any, *arguments: Any) -> str:
        """'' for an image that cannot be read: the numbers are worth a report all the same."""
        path = self.paths[img_id]
        try:
            return how(path, *arguments)
        except (OSError, UserError) as error:
            say(f'not drawn: {one_line(error)}')
            return ''

    def read(self, path: str) -> tuple[list[dict], list[str]]:
        """Detections that were saved, as `CocoMetric.checked` gives them, and which metrics they are enough for.

        Args:
            path: a .pkl of mmdet test --out, or a .json of COCO results; of a .json every image of the annotation
                file counts as evaluated.

        Raises:
            UserError: no such file, or one of another kind; results of another data set; no mask where one is needed.
        """
        if not Path(path).is_file():
            raise MissingFile(f'{path}: no such file; {_KNOWN}')
        if path.endswith('.json'):
            samples, kinds = self._from_json(path)
        elif path.endswith(('.pkl', '.pickle')):
            samples, kinds = self._from_pickle(path)
        else:
            raise UserError(f'{path}: {_KNOWN}')
        wanted = [kind for kind in self.metric.metrics if kind in kinds]
        lacking = [kind for kind in self.metric.metrics if kind not in kinds]
        if not wanted or lacking and self.chosen:
            raise UserError(f"{path} is not enough for {at_most(map(repr, lacking))}: its detections have no "
                            f'{"masks" if "segm" in lacking else "boxes"}')
        self.metric.metrics = wanted
        try:
            return [self.metric.checked(sample) for sample in samples], wanted
        except ValueError as error:
            raise UserError(f'{path}: {error}') from error

    def _from_pickle(self, path: str) -> tuple[list[dict], set[str]]:
        from mmdet.checkpoints.pickled_arrays import Refused, read_arrays

        try:
            with open(path, 'rb') as file:
                samples = read_arrays(file)
        except Refused as error:
            raise UserError(f'{path} holds {error}, which is not read: write it with mmdet test --out') from error
        except Exception as error:
            raise UserError(f'{path} is damaged, or no pickle ({type(error).__name__}: {error})') from error
        if not isinstance(samples, list) or not all(isinstance(s, dict) and 'pred_instances' in s for s in samples):
            raise UserError(f'{path} is not a list of detections as mmdet test --out writes it')
        self._check_ids(path, [sample.get('img_id') for sample in samples])
        for sample in samples:
            image = self.metric.truth.images[self.metric.truth.index[0, sample['img_id']]]
            size = (image['height'], image['width'])
            given = tuple(sample.get('ori_shape') or size)[:2]
            if given != size:
                raise UserError(f'{path}: image {sample["img_id"]!r} is of size {given} (h, w), in '
                                f'{self.metric.ann_file} {size}: these are results of another data set')
        with_masks = all('masks' in sample['pred_instances'] for sample in samples)
        unique = {sample['img_id']: sample for sample in samples}
        return list(unique.values()), {'bbox', 'proposal'} | ({'segm'} if with_masks else set())

    def _from_json(self, path: str) -> tuple[list[dict], set[str]]:
        try:
            entries = json.loads(Path(path).read_bytes())
        except (ValueError, RecursionError) as error:
            raise UserError(f'{path}: not JSON: {error}') from error
        needed = {'image_id', 'category_id', 'score'}
        if not isinstance(entries, list) or not all(isinstance(e, dict) and needed <= e.keys() for e in entries):
            raise UserError(f'{path}: COCO results are needed, a list of dicts with image_id, category_id, score and '
                            'bbox or segmentation')
        for entry in entries:
            wrong = _wrong(entry)
            if wrong:
                raise UserError(f'{path}: an entry has {wrong}: {str(entry)[:200]}')
        self._check_ids(path, [entry['image_id'] for entry in entries])
        labels = {cat_id: label for label, cat_id in enumerate(self.metric.cat_ids)}
        if self.metric.metrics == ['proposal']:  # which have no class
            labels = dict.fromkeys({entry['category_id'] for entry in entries}, 0)
        unknown = {entry['category_id'] for entry in entries} - labels.keys()
        if unknown:
            raise UserError(f'{path}: category_id {at_most(sorted(map(repr, unknown)), 3)} is none of the '
                            f'{len(labels)} classes of {self.metric.ann_file}: these are results of another data set')
        by_image: dict[Any, list[dict]] = {img_id: [] for _, img_id in self.metric.truth.index}
        for entry in entries:
            by_image[entry['image_id']].append(entry)
        has = {key: all(key in entry for entry in entries) for key in ('bbox', 'segmentation')}
        try:
            samples = [dict(img_id=img_id, pred_instances=self._instances(found, labels, **has))
                       for img_id, found in by_image.items()]
        except ValueError as error:  # of a mask
            raise UserError(f'{path}: {error}') from error
        return samples, ({'bbox', 'proposal'} if has['bbox'] else set()) | ({'segm'} if has['segmentation'] else set())

    def _instances(self, entries: list[dict], labels: dict, bbox: bool, segmentation: bool) -> dict:
        """What entries of COCO results say of one image; a box that they lack is that of the mask."""
        from pycocotools import mask as coco_mask

        from mmdet.structures.masks import compressed_rle, rle_areas

        masks = [compressed_rle(entry['segmentation'], *entry['segmentation']['size']) for entry in entries
                 ] if segmentation else []
        rle_areas(masks)  # what is damaged pycocotools must not see
        boxes = [entry['bbox'] for entry in entries] if bbox else [coco_mask.toBbox(mask) for mask in masks]
        boxes = np.array(boxes, float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2] - self.metric.offset
        return dict(bboxes=boxes, scores=np.array([entry['score'] for entry in entries], float), masks=masks,
                    labels=np.array([labels[entry['category_id']] for entry in entries], int))

    def _check_ids(self, path: str, ids: list) -> None:
        known = {img_id for _, img_id in self.metric.truth.index}
        unknown = list(dict.fromkeys(repr(img_id) for img_id in ids if img_id not in known))
        if unknown:
            raise UserError(f'{path}: {len(unknown)} of {len(set(map(repr, ids)))} images are not in '
                            f'{self.metric.ann_file} ({at_most(unknown, 3)}): these are results of another data set')


def _wrong(entry: dict) -> str | None:
    """What of an entry of COCO results cannot be read, in words."""
    for key in ('image_id', 'category_id'):
        if type(entry[key]) not in (int, str):
            return f'no whole number or text as {key}'
    box, mask = entry.get('bbox', [0, 0, 0, 0]), entry.get('segmentation')
    if type(entry['score']) not in (int, float):
        return 'a score that is no number'
    if not isinstance(box, list) or len(box) != 4 or not {*map(type, box)} <= {int, float}:
        return 'a bbox that is not four numbers x, y, width, height'
    size = mask.get('size') if isinstance(mask, dict) else None
    if 'segmentation' in entry and not (isinstance(size, list) and len(size) == 2 and {*map(type, size)} == {int}):
        return 'a segmentation that is not an RLE mask, dict(size=[h, w], counts=...)'
    return None
