"""Cropping."""

from __future__ import annotations

import numpy as np
from mmcv.transforms import BaseTransform

from mmdet.config.errors import UserError
from mmdet.config.overrides import refuse_overrides
from mmdet.datasets.transforms.objects import clip_boxes, keep_objects
from mmdet.registry import TRANSFORMS


@TRANSFORMS.register_module()
@refuse_overrides(_crop_data='transform', _rand_offset='transform')
class RandomCrop(BaseTransform):
    """Cut a random window out of the image; objects outside it are dropped.

    Args:
        crop_size: (w, h) in pixels ('absolute'), or as shares of the image ('relative'), or the
            smallest and largest side ('absolute_range': both sides between them) or the smallest shares of
            height and width, in this order as in mmdetection ('relative_range': up to 1).
        crop_type: 'absolute', 'absolute_range', 'relative' or 'relative_range'.
        allow_negative_crop: keep a window without objects; otherwise the image is rejected (None).
        recompute_bbox: take boxes from the cropped masks; an object without a pixel of its mask left is dropped.
        bbox_clip_border: clip boxes to the window.
    """

    changes_geometry = True
    _TYPES = ('absolute', 'absolute_range', 'relative', 'relative_range')

    def __init__(
        self,
        crop_size: tuple,
        crop_type: str = 'absolute',
        allow_negative_crop: bool = False,
        recompute_bbox: bool = False,
        bbox_clip_border: bool = True,
    ) -> None:
        crop_size = (crop_size, crop_size) if isinstance(crop_size, (int, float)) else tuple(crop_size)
        if crop_type not in self._TYPES:
            raise UserError(f'crop_type={crop_type!r}; use one of {", ".join(self._TYPES)}')
        if min(crop_size) <= 0 or (crop_type.startswith('relative') and max(crop_size) > 1):
            raise UserError(f'crop_size={crop_size} is out of range for crop_type={crop_type!r}')
        if crop_type.startswith('absolute') and not all(isinstance(side, int) for side in crop_size):
            raise UserError(f'crop_size={crop_size} must be whole pixels for crop_type={crop_type!r}')
        if crop_type == 'absolute_range' and crop_size[0] > crop_size[1]:
            raise UserError(f"crop_size={crop_size}: 'absolute_range' takes (smallest, largest)")
        self.crop_size = crop_size
        self.crop_type = crop_type
        self.allow_negative_crop = allow_negative_crop
        self.recompute_bbox = recompute_bbox
        self.bbox_clip_border = bbox_clip_border

    def _get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the window in an image of `image_size` (h, w)."""
        height, width = image_size
        first, second = self.crop_size
        if self.crop_type == 'absolute':
            return min(second, height), min(first, width)
        if self.crop_type == 'absolute_range':
            sides = [np.random.randint(min(side, first), min(side, second) + 1) for side in (height, width)]
            return sides[0], sides[1]
        if self.crop_type == 'relative_range':
            smallest = np.array(self.crop_size)
            second, first = smallest + np.random.rand(2) * (1 - smallest)
        return max(int(height * second + 0.5), 1), max(int(width * first + 0.5), 1)

    def transform(self, results: dict) -> dict | None:
        height, width = results['img'].shape[:2]
        crop_height, crop_width = self._get_crop_size((height, width))
        y1 = np.random.randint(0, height - crop_height + 1)
        x1 = np.random.randint(0, width - crop_width + 1)
        y2, x2 = y1 + crop_height, x1 + crop_width

        results['img'] = np.ascontiguousarray(results['img'][y1:y2, x1:x2])
        results['img_shape'] = (crop_height, crop_width)
        if 'proposals' in results:
            raise UserError('RandomCrop does not move proposals; leave it out of a Fast R-CNN pipeline')
        if 'gt_bboxes' not in results:
            return results
        boxes = results['gt_bboxes'] - np.array([x1, y1, x1, y1], dtype=np.float32)
        if 'gt_masks' in results:
            results['gt_masks'] = results['gt_masks'].crop((x1, y1, x2, y2))
            if self.recompute_bbox:
                boxes = results['gt_masks'].boxes()
        seen = clip_boxes(boxes, results['img_shape'])
        results['gt_bboxes'] = seen if self.bbox_clip_border else boxes
        keep_objects(results, (seen[:, 2] > seen[:, 0]) & (seen[:, 3] > seen[:, 1]))
        objects = len(results['gt_bboxes']) - np.count_nonzero(results.get('gt_ignore_flags', 0))
        return results if objects or self.allow_negative_crop else None


@TRANSFORMS.register_module()
class CenterCrop:
    """Refused, wherever a pipeline has it: what else stands behind this name is mmcv's."""

    def __init__(self, *args, **options) -> None:
        raise UserError("mmcv's CenterCrop leaves masks and emptied boxes behind; use RandomCrop, or Resize")
