"""`CocoDataset`: images and objects from an annotation file in COCO's format."""

from __future__ import annotations

import copy
import os
from collections import defaultdict
from collections.abc import Callable, Sequence

import mmengine.fileio as fileio
import numpy as np
from mmengine.dataset import BaseDataset, force_full_init

from mmdet.config.errors import MissingFile, UserError, say
from mmdet.config.values import names_a
from mmdet.datasets.common import check_packed, with_class_names
from mmdet.datasets.pipeline import build_steps, check_order
from mmdet.datasets.transforms import LoadProposals
from mmdet.registry import DATASETS
from mmdet.structures.coco_arrays import CocoArrays, load_coco_arrays
from mmdet.structures.coco_file import check_file, choose_categories, garbage_kept, load_coco_file

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
    """Images and objects from an annotation file in COCO's format.

    An image is a dict of img_id, img_path, height, width (pixels) and ``instances``; an instance has
    ``bbox`` [x1, y1, x2, y2] in pixels, ``bbox_label`` (position of its class in ``classes``),
    ``ignore_flag`` (1 for a crowd or an annotation marked ``ignore``) and, where annotated, ``mask``
    (polygons or RLE).
    Annotations of other classes, and boxes under one pixel, are left out.

    The annotations are kept as arrays (see `mmdet.structures.coco_arrays`) and a dict is made when it is asked for. For
    a subclass that overrides `parse_data_info`, `load_data_list` or `filter_data` every dict is made at the start, from
    the file's whole entries.

    Args:
        ann_file: annotation file, below `data_root` unless absolute. May lack 'annotations' in `test_mode`.
        data_prefix: dict(img=folder of the images), below `data_root` unless absolute.
        metainfo: dict(classes=names); labels follow this order. Default: the 80 classes of COCO.
        filter_cfg: for training, dict(filter_empty_gt=True) drops images without an object,
            dict(min_size=32) those with a side under 32 pixels.
        backend_args: mmengine's file backend for the annotation file.
        proposal_file: of the pipeline's `LoadProposals`, below `data_root` unless absolute.
        test_mode: keep every image.
        pipeline, data_root, indices, serialize_data, lazy_init, max_refetch: see mmengine's `BaseDataset`.

    Raises:
        MissingFile: no annotation file, no image folder, or a first image that is not in it.
        UserError: a broken annotation file; an empty folder; a class that the file does not have; no masks where the
            pipeline loads them; no image left; a pipeline in the wrong order.
    """

    METAINFO = dict(dataset_type='coco', classes=COCO_CLASSES)
    _doubts, _left_out = (), ''  # for messages, where a subclass loads the list in its own way

    @classmethod
    def check_config(cls, cfg: dict, path: str, whole: dict, training: bool) -> None:
        """Refuse a pipeline of known transforms none of which packs its results."""
        check_packed(cfg, path, whole)

    @classmethod
    def check_files(cls, cfg: dict) -> None:
        """Refuse an annotation file that is not there; a subclass may find its own otherwise."""
        own = all(getattr(cls, name) is getattr(CocoDataset, name) for name in ('__init__', 'load_data_list'))
        if own and cfg.get('ann_file') and not cfg.get('backend_args'):
            check_file(os.path.join(cfg.get('data_root') or '', cfg['ann_file']))

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
        serialize_data: bool = True,
        **kwargs,
    ) -> None:
        if not ann_file:
            raise UserError('CocoDataset needs ann_file, an annotation file in COCO format')
        unknown = set(filter_cfg or {}) - {'filter_empty_gt', 'min_size'}
        if unknown:
            raise UserError(f"filter_cfg has unknown {sorted(unknown)}; use 'filter_empty_gt', 'min_size'")
        if not isinstance(data_prefix, (dict, type(None))):
            raise UserError(f"data_prefix={data_prefix!r} must be a dict: data_prefix=dict(img='folder/of/images/')")
        self.backend_args = backend_args
        if proposal_file is not None:
            file = os.path.join(data_root or '', proposal_file)
            pipeline = [
                {'proposal_file': file, **t} if isinstance(t, dict) and names_a(t, LoadProposals) else t
                for t in pipeline
            ]
        pipeline = build_steps(pipeline)
        if not kwargs.get('test_mode', False):
            check_order(pipeline)
        self._whole_entries = any(
            getattr(type(self), name) is not getattr(CocoDataset, name)
            for name in ('parse_data_info', 'load_data_list', 'filter_data')
        )
        super().__init__(
            ann_file=ann_file,
            metainfo=metainfo,
            data_root=data_root or '',
            data_prefix=dict(img='') if data_prefix is None else data_prefix,
            filter_cfg=filter_cfg,
            pipeline=pipeline,
            serialize_data=serialize_data and self._whole_entries,
            **kwargs,
        )

    @classmethod
    def _load_metainfo(cls, metainfo=None) -> dict:
        return with_class_names(cls, super()._load_metainfo, metainfo)

    def load_data_list(self) -> Sequence[dict]:
        file = load_coco_arrays(self.ann_file, self.backend_args, need_annotations=not self.test_mode)
        cat_ids = choose_categories(file.categories, file.used_categories(), self._metainfo['classes'], self.ann_file)
        self.cat_ids = cat_ids
        self.cat2label = {cat_id: label for label, cat_id in enumerate(cat_ids)}
        self.order_in_file = tuple(c['name'] for c in file.categories if c['id'] in self.cat2label)
        self._doubts = file.doubts
        for doubt in file.doubts:
            say(f'{self.ann_file}: {doubt}')
        images = _Images(file, self.cat2label, self.parse_data_info)
        self._check_images(images)
        self._left_out = images.left_out()
        if file.has_annotations and images.empty.all():
            say(f'{self.ann_file}: no image has an object of the {len(cat_ids)} classes{self._left_out}')
        self._check_masks(images)
        return self._parse_whole() if self._whole_entries else images

    @garbage_kept()
    def _parse_whole(self) -> list[dict]:
        content = load_coco_file(self.ann_file, self.backend_args, need_annotations=not self.test_mode)
        annotations = defaultdict(list)
        for annotation in content.get('annotations', ()):
            annotations[annotation['image_id']].append(annotation)
        entries = ((dict(image, img_id=image['id']), annotations[image['id']]) for image in content['images'])
        return [self.parse_data_info(dict(raw_img_info=image, raw_ann_info=objects)) for image, objects in entries]

    def parse_data_info(self, raw_data_info: dict) -> dict:
        """One image from its COCO entry, ``raw_img_info``, and those of the objects on it, ``raw_ann_info``."""
        img = raw_data_info['raw_img_info']
        info = dict(
            img_id=img['id'],
            img_path=fileio.join_path(self.data_prefix.get('img', ''), img['file_name']),
            height=img['height'],
            width=img['width'],
        )
        instances = (self._parse_annotation(a, img) for a in raw_data_info['raw_ann_info'])
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

    def filter_data(self) -> Sequence[dict]:
        if self.test_mode:
            return self.data_list
        config, images = self.filter_cfg or {}, self.data_list
        if isinstance(images, _Images):
            sides, empty = images.file.shapes.min(axis=1), images.empty
        else:
            sides = np.array([min(info['height'], info['width']) for info in images])
            empty = np.array([all(x['ignore_flag'] for x in info['instances']) for info in images])
        small = sides < config.get('min_size', 0)
        kept = np.flatnonzero(~(small | (empty & config.get('filter_empty_gt', False))))
        if not len(kept):
            reasons = []
            if config.get('filter_empty_gt', False) and empty.any():
                classes = f'the {len(self._metainfo["classes"])} classes'
                reasons.append(f'{empty.sum()} have no object of {classes}{self._left_out}')
            if small.any():
                reasons.append(f'{small.sum()} have a side under min_size={config["min_size"]}')
            advice = ''.join(f'; {doubt}' for doubt in self._doubts)
            raise UserError(
                f'no image of {self.ann_file} is left after filter_cfg={config}: of {len(images)}, '
                f'{", ".join(reasons)}{advice}'
            )
        return images.subset(kept) if isinstance(images, _Images) else [images[i] for i in kept]

    @force_full_init
    def get_data_info(self, idx: int) -> dict:
        if not isinstance(self.data_list, _Images):
            return super().get_data_info(idx)
        # made anew each time: mmengine's deep copy is not needed
        return self.data_list[idx] | dict(sample_idx=idx if idx >= 0 else len(self) + idx)

    def get_cat_ids(self, idx: int) -> list[int]:
        """Labels of the objects on image `idx` (mmengine's ClassBalancedDataset asks for them)."""
        return [x['bbox_label'] for x in self.get_data_info(idx)['instances']]

    def _check_images(self, images: _Images) -> None:
        if not len(images):
            raise UserError(f"annotation file {self.ann_file} lists no image (its 'images' is empty)")
        folder = self.data_prefix.get('img', '')
        if self.backend_args or '://' in folder:
            return
        url = images.file.first_name_with('://')
        if url is not None:
            raise UserError(f'{self.ann_file}: file_name {url!r} is a URL; fetch the images, and give the name of each '
                            f'file below {folder or "."}')
        first = fileio.join_path(folder, images.file.file_name(0))
        if os.path.isfile(first):
            return
        folder = folder or '.'
        if not os.path.isdir(folder):
            raise MissingFile(f'no image folder {folder}; check data_root and data_prefix')
        with os.scandir(folder) as entries:
            if next(entries, None) is None:
                raise UserError(f'image folder {folder} is empty; put the images of {self.ann_file} there')
        raise MissingFile(f'no image {first}, the first of {self.ann_file}; check data_prefix')

    def _check_masks(self, images: _Images) -> None:
        if self.test_mode or not any(getattr(step, 'with_mask', False) for step in self.pipeline.transforms):
            return
        masks, objects = np.count_nonzero(images.objects & (images.file.mask > 0)), np.count_nonzero(images.objects)
        if masks == 0 < objects:
            raise UserError(
                f'with_mask=True, but no object of {self.ann_file} has a segmentation of three points or more; '
                'train a box detector (with_mask=False) or add masks to the annotation file'
            )
        if masks < objects:
            say(f'{self.ann_file}: {objects - masks} of {objects} objects have no mask, or polygons of fewer than '
                'three points: they are ignored in training')


class _Images(Sequence):
    """Images of an annotation file as `CocoDataset.parse_data_info` gives them, each made when it is asked for.

    N images of the file, A objects on them.

    Attributes:
        file: the annotation file.
        which: positions in the file of the images that are here.
        objects: (A,) bool: an object of one of the classes, and no crowd.
        empty: (N,) bool: an image without such an object.
    """

    def __init__(self, file: CocoArrays, cat2label: dict, parse: Callable[[dict], dict]) -> None:
        self.file, self.parse = file, parse
        self.which = np.arange(len(file))
        wanted = np.array([category['id'] in cat2label for category in file.categories] + [False])
        counts = np.diff(file.first)
        low, size = file.boxes[:, :2], file.boxes[:, 2:]
        seen = np.minimum(low + size, np.repeat(file.shapes[:, ::-1], counts, axis=0)) - np.maximum(low, 0)
        # as CocoDataset._parse_annotation, and the ignored ones, which are not left out there
        self._reasons = {
            'are of other categories': ~wanted[file.category],
            'have a box under one pixel': (size < 1).any(axis=1),
            'have a box outside their image': (seen <= 0).any(axis=1),
            'have an area of 0': file.areas <= 0,
            'are ignored (iscrowd or ignore is 1)': file.crowd | file.ignore,
        }
        self.objects = ~np.any(list(self._reasons.values()), axis=0)
        self.empty = np.bincount(np.repeat(self.which, counts), self.objects, minlength=len(file)) == 0

    def left_out(self) -> str:
        """' (of 9 annotations 7 are of other categories, ...)', for a message."""
        remaining, parts = np.ones(len(self.objects), dtype=bool), []
        for reason, these in self._reasons.items():
            count = np.count_nonzero(these & remaining)
            remaining &= ~these
            parts += [f'{count} {reason}'] if count else []
        return f' (of {len(remaining)} annotations {", ".join(parts)})' if parts else ''

    def subset(self, kept: np.ndarray | slice) -> _Images:
        """The images at the positions `kept`."""
        new = copy.copy(self)
        new.which = self.which[kept]
        return new

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, index: int | slice) -> dict | _Images:
        if isinstance(index, slice):
            return self.subset(index)
        return self.parse(self.file.entry(int(self.which[index])))
