"""`CocoDataset`: pictures and objects from an annotation file in COCO's format."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence

import mmengine.fileio as fileio
from mmengine.dataset import BaseDataset

from mmdet.config.errors import MissingFile, UserError, say
from mmdet.config.values import class_of
from mmdet.datasets.pipeline import build_steps, check_order
from mmdet.datasets.transforms import PackDetInputs
from mmdet.registry import DATASETS
from mmdet.structures.coco_file import category_ids, doubts, garbage_kept, load_coco_file

COCO_CLASSES = (
    'person', 'bicycle', 'car', 'motorcycle', 'airplane', 'bus', 'train', 'truck', 'boat', 'traffic light',
    'fire hydrant', 'stop sign', 'parking meter', 'bench', 'bird', 'cat', 'dog', 'horse', 'sheep', 'cow',
    'elephant', 'bear', 'zebra', 'giraffe', 'backpack', 'umbrella', 'handbag', 'tie', 'suitcase', 'frisbee',
    'skis', 'snowboard', 'sports ball', 'kite', 'baseball bat', 'baseball glove', 'skateboard', 'surfboard',
    'tennis racket', 'bottle', 'wine glass', 'cup', 'fork', 'knife', 'spoon', 'bowl', 'banana', 'apple',
    'sandwich', 'orange', 'broccoli', 'carrot', 'hot dog', 'pizza', 'donut', 'cake', 'chair', 'couch',
    'potted plant', 'bed', 'dining table', 'toilet', 'tv', 'laptop', 'mouse', 'remote', 'keyboard',
    'cell phone', 'microwave', 'oven', 'toaster', 'sink', 'refrigerator', 'book', 'clock', 'vase', 'scissors',
    'teddy bear', 'hair drier', 'toothbrush',
)  # fmt: skip


@DATASETS.register_module()
class CocoDataset(BaseDataset):
    """Pictures and objects from an annotation file in COCO's format.

    A picture is a dict of img_id, img_path, height, width (pixels) and ``instances``; an instance has
    ``bbox`` [x1, y1, x2, y2] in pixels, ``bbox_label`` (position of its class in ``classes``),
    ``ignore_flag`` (1 for a crowd or an annotation marked ``ignore``) and, where annotated, ``mask``
    (polygons or RLE).
    Annotations of other classes, and boxes under one pixel, are left out.

    Args:
        ann_file: annotation file, below `data_root` unless absolute. May lack 'annotations' in `test_mode`.
        data_prefix: dict(img=folder of the pictures), below `data_root` unless absolute.
        metainfo: dict(classes=names); labels follow this order. Default: the 80 classes of COCO.
        filter_cfg: for training, dict(filter_empty_gt=True) drops pictures without an object,
            dict(min_size=32) those with a side under 32 pixels.
        backend_args: mmengine's file backend for the annotation file.
        proposal_file: of the pipeline's `LoadProposals`, below `data_root` unless absolute.
        test_mode: keep every picture.
        pipeline, data_root, indices, serialize_data, lazy_init, max_refetch: see mmengine's `BaseDataset`.

    Raises:
        MissingFile: no annotation file, no image folder, or a first picture that is not in it.
        UserError: a broken annotation file, an empty image folder, a class the file does not have, no masks where
            the pipeline loads them, or no picture left.
    """

    METAINFO = dict(dataset_type='coco', classes=COCO_CLASSES)

    @classmethod
    def check_config(cls, cfg: dict, path: str, whole: dict, training: bool) -> None:
        """Refuse a pipeline of known transforms none of which packs its results."""
        steps = cfg.get('pipeline') or ()
        if all(_cannot_pack(step) for step in steps):
            names = [step.get('type') for step in steps]
            raise UserError(f"{path}.pipeline must end with dict(type='PackDetInputs'), its steps are {names}")

    def __init__(
        self,
        ann_file: str = '',
        metainfo: dict | None = None,
        data_root: str = '',
        data_prefix: dict | None = None,
        filter_cfg: dict | None = None,
        pipeline: Sequence = (),
        backend_args: dict | None = None,
        proposal_file: str | None = None,
        **kwargs,
    ) -> None:
        if not ann_file:
            raise UserError('CocoDataset needs ann_file, an annotation file in COCO format')
        unknown = set(filter_cfg or {}) - {'filter_empty_gt', 'min_size'}
        if unknown:
            raise UserError(f"filter_cfg has unknown {sorted(unknown)}; use 'filter_empty_gt', 'min_size'")
        if not isinstance(data_prefix, (dict, type(None))):
            raise UserError(f"data_prefix={data_prefix!r} must be a dict: data_prefix=dict(img='folder/of/pictures/')")
        self.backend_args = backend_args
        if proposal_file is not None:
            file = os.path.join(data_root or '', proposal_file)
            pipeline = [
                {'proposal_file': file, **t} if isinstance(t, dict) and t['type'] == 'LoadProposals' else t
                for t in pipeline
            ]
        pipeline = build_steps(pipeline)
        if not kwargs.get('test_mode', False):
            check_order(pipeline)
        super().__init__(
            ann_file=ann_file,
            metainfo=metainfo,
            data_root=data_root or '',
            data_prefix=dict(img='') if data_prefix is None else data_prefix,
            filter_cfg=filter_cfg,
            pipeline=pipeline,
            **kwargs,
        )

    @classmethod
    def _load_metainfo(cls, metainfo=None) -> dict:
        if metainfo and isinstance(metainfo.get('classes'), str) and not os.path.isfile(metainfo['classes']):
            metainfo = dict(metainfo, classes=(metainfo['classes'],))  # mmengine would warn that it is no file
        metainfo = super()._load_metainfo(metainfo)
        classes = metainfo['classes']
        metainfo['classes'] = (classes,) if isinstance(classes, str) else tuple(classes)
        return metainfo

    @garbage_kept()
    def load_data_list(self) -> list[dict]:
        content = load_coco_file(self.ann_file, self.backend_args, need_annotations=not self.test_mode)
        cat_ids = category_ids(content, self._metainfo['classes'], self.ann_file)
        self.cat_ids = cat_ids
        self.cat2label = {cat_id: label for label, cat_id in enumerate(cat_ids)}
        self.order_in_file = tuple(c['name'] for c in content['categories'] if c['id'] in self.cat2label)

        for doubt in doubts(content):
            say(f'{self.ann_file}: {doubt}')
        annotations = defaultdict(list)
        for annotation in content.get('annotations', ()):
            annotations[annotation['image_id']].append(annotation)
        data_list = [self.parse_data_info(dict(img=x, anns=annotations[x['id']])) for x in content['images']]
        self._check_pictures(data_list)
        if 'annotations' in content and all(map(_is_empty, data_list)):
            say(f'{self.ann_file}: no picture has an object of the {len(cat_ids)} classes')
        self._check_masks(data_list)
        return data_list

    def parse_data_info(self, raw_data_info: dict) -> dict:
        """One picture from its COCO ``img`` entry and the ``anns`` on it."""
        img = raw_data_info['img']
        info = dict(
            img_id=img['id'],
            img_path=fileio.join_path(self.data_prefix.get('img', ''), img['file_name']),
            height=img['height'],
            width=img['width'],
        )
        instances = (self._parse_annotation(a, img) for a in raw_data_info['anns'])
        info['instances'] = [x for x in instances if x is not None]
        return info

    def _parse_annotation(self, annotation: dict, img: dict) -> dict | None:
        label = self.cat2label.get(annotation['category_id'])
        if label is None:
            return None
        x, y, width, height = annotation['bbox']
        seen_width = min(x + width, img['width']) - max(x, 0)
        seen_height = min(y + height, img['height']) - max(y, 0)
        if width < 1 or height < 1 or seen_width <= 0 or seen_height <= 0 or annotation.get('area', 1) <= 0:
            return None
        instance = dict(
            bbox=[x, y, x + width, y + height],
            bbox_label=label,
            ignore_flag=int(bool(annotation.get('iscrowd', 0) or annotation.get('ignore', 0))),
        )
        if annotation.get('segmentation'):
            instance['mask'] = annotation['segmentation']
        return instance

    def filter_data(self) -> list[dict]:
        if self.test_mode:
            return self.data_list
        config = self.filter_cfg or {}
        min_size = config.get('min_size', 0)
        kept = [
            info
            for info in self.data_list
            if min(info['height'], info['width']) >= min_size
            and not (config.get('filter_empty_gt', False) and _is_empty(info))
        ]
        if not kept:
            raise UserError(
                f'no picture of {self.ann_file} is left after filter_cfg={config}: of {len(self.data_list)}, '
                f'{sum(map(_is_empty, self.data_list))} have no object of the {len(self.cat_ids)} classes'
            )
        return kept

    def get_cat_ids(self, idx: int) -> list[int]:
        """Labels of the objects on picture `idx` (mmengine's ClassBalancedDataset asks for them)."""
        return [x['bbox_label'] for x in self.get_data_info(idx)['instances']]

    def _check_pictures(self, data_list: list[dict]) -> None:
        if not data_list:
            raise UserError(f"annotation file {self.ann_file} lists no picture (its 'images' is empty)")
        folder = self.data_prefix.get('img', '')
        if self.backend_args or '://' in folder:
            return
        folder = folder or '.'
        if not os.path.isdir(folder):
            raise MissingFile(f'no image folder {folder}; check data_root and data_prefix')
        with os.scandir(folder) as entries:
            if next(entries, None) is None:
                raise UserError(f'image folder {folder} is empty; put the pictures of {self.ann_file} there')
        first = data_list[0]['img_path']
        if not os.path.isfile(first):
            raise MissingFile(f'no picture {first}, the first of {self.ann_file}; check data_prefix')

    def _check_masks(self, data_list: list[dict]) -> None:
        if self.test_mode or not any(getattr(step, 'with_mask', False) for step in self.pipeline.transforms):
            return
        instances = [instance for info in data_list for instance in info['instances']]
        if instances and not any('mask' in x for x in instances):
            raise UserError(
                f'with_mask=True, but no object of {self.ann_file} has a segmentation; '
                'train a box detector (with_mask=False) or add masks to the annotation file'
            )


def _cannot_pack(step: dict | Callable) -> bool:
    """Whether a transform of ours or of mmcv's, without others inside, packs nothing; of others nothing is known."""
    kind = class_of(step) if isinstance(step, dict) and 'transforms' not in step else None
    return isinstance(kind, type) and kind.__module__.startswith(('mmdet.', 'mmcv.')) and kind is not PackDetInputs


def _is_empty(info: dict) -> bool:
    return all(x['ignore_flag'] for x in info['instances'])
