"""Transforms of albumentations."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform

from mmdet.config.errors import UserError, one_line
from mmdet.datasets.transforms.objects import clip_boxes, drop_outside, keep_objects, refuse_proposals, take_size
from mmdet.registry import TRANSFORMS
from mmdet.structures import BitmapMasks

_KEYMAP = dict(img='image', gt_masks='masks', gt_bboxes='bboxes')


@TRANSFORMS.register_module()
class Albu(BaseTransform):
    """Transforms of albumentations, boxes and masks moved with the image. They see an RGB image.

    Where one moves pixels, polygons become bitmaps. Objects that leave the image are dropped.

    Args:
        transforms: dict(type='RandomBrightnessContrast', p=0.2), ...; those that hold others, such as OneOf, have
            ``transforms`` of their own.
        bbox_params: options of albumentations' BboxParams, such as min_visibility=0.1; mmdetection's
            type='BboxParams', format='pascal_voc', label_fields and filter_lost_elements are understood.
        keymap: mmdetection's, with the names it has there.
        skip_img_without_anno: reject (return None) an image that loses its last object.

    Raises:
        ImportError: albumentations is not installed.
        UserError: an unknown transform or option.
    """

    def __init__(
        self,
        transforms: Sequence[dict],
        bbox_params: dict | None = None,
        keymap: dict | None = None,
        skip_img_without_anno: bool = False,
    ) -> None:
        try:
            os.environ.setdefault('NO_ALBUMENTATIONS_UPDATE', '1')  # else its import asks the network
            import albumentations
        except ImportError as error:
            raise ImportError('Albu needs albumentations: pip install albumentations') from error
        if keymap is not None and not keymap.items() <= _KEYMAP.items():
            raise UserError(f'Albu: keymap={keymap} must be {_KEYMAP}')
        self.library = albumentations
        steps = [self._build(step) for step in transforms]
        self.changes_geometry = any(not isinstance(step, albumentations.ImageOnlyTransform) for step in _leaves(steps))
        params = self._bbox_params(dict(bbox_params or {}))
        self.compose = albumentations.Compose(steps, bbox_params=params if self.changes_geometry else None)
        self.skip_img_without_anno = skip_img_without_anno

    def _build(self, step: dict) -> Any:
        options = dict(step)
        name = options.pop('type', None)
        kind = getattr(self.library, str(name), None)
        if not (isinstance(kind, type) and issubclass(kind, (self.library.BasicTransform, self.library.BaseCompose))):
            raise UserError(f'Albu: albumentations has no transform {name!r} (of {step})')
        if 'transforms' in options:
            options['transforms'] = [self._build(inner) for inner in options['transforms']]
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings('error', message='.*not valid for transform')  # it would ignore the option
                return kind(**options)
        except (TypeError, ValueError, UserWarning) as error:
            raise UserError(f'Albu: {name}: {one_line(error)}') from None

    def _bbox_params(self, options: dict) -> Any:
        if options.pop('type', 'BboxParams') != 'BboxParams' or options.pop('format', 'pascal_voc') != 'pascal_voc':
            raise UserError("Albu: bbox_params must be dict(type='BboxParams', format='pascal_voc', ...), as boxes are "
                            'xyxy')
        options.pop('filter_lost_elements', None)
        options.pop('label_fields', None)  # here every object's fields go with its box
        try:
            return self.library.BboxParams(format='pascal_voc', label_fields=['which'], **options)
        except TypeError as error:
            raise UserError(f'Albu: bbox_params: {error}') from None

    def transform(self, results: dict) -> dict | None:
        if hasattr(self.compose, 'set_random_seed'):  # since 1.4.19; before, Python's generator is drawn from
            self.compose.set_random_seed(np.random.randint(2**31))
        image = np.ascontiguousarray(results['img'][..., ::-1])
        if not self.changes_geometry:
            moved = self.compose(image=image)
            results['img'] = np.ascontiguousarray(moved['image'][..., ::-1])
            return results
        refuse_proposals(results, self)
        objects = self._objects(results)
        moved = self.compose(image=image, **objects)
        results['img'] = np.ascontiguousarray(moved['image'][..., ::-1])
        take_size(results)
        return self._take(results, moved)

    def _objects(self, results: dict) -> dict:
        """What albumentations takes: boxes inside the image, the numbers of their objects, and their masks."""
        if 'gt_bboxes' not in results:
            return dict(bboxes=np.zeros((0, 4)), which=[])
        drop_outside(results, clip=False)
        boxes = clip_boxes(results['gt_bboxes'], results['img_shape'])
        objects = dict(bboxes=boxes, which=list(range(len(boxes))))
        if len(boxes) and 'gt_masks' in results:
            objects['masks'] = results['gt_masks'].to_ndarray()
        return objects

    def _take(self, results: dict, moved: dict) -> dict | None:
        if 'gt_bboxes' not in results:
            return results
        which = np.array(moved['which'], dtype=int)
        if 'gt_masks' in results:
            masks = np.array(moved.get('masks', np.zeros((0, *results['img_shape']))))
            results['gt_masks'] = BitmapMasks(masks, *results['img_shape'])
        keep_objects(results, which)
        results['gt_bboxes'] = np.array(moved['bboxes'], dtype=np.float32).reshape(-1, 4)
        drop_outside(results, clip=True)
        return None if self.skip_img_without_anno and not len(results['gt_bboxes']) else results


def _leaves(steps: Sequence[Any]) -> Iterator[Any]:
    for step in steps:
        inner = getattr(step, 'transforms', None)
        if inner is None:
            yield step
        else:
            yield from _leaves(inner)
