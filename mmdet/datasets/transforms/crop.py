"""Cropping."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from mmcv.transforms import BaseTransform

from mmdet.config.errors import UserError
from mmdet.config.overrides import refuse_overrides
from mmdet.datasets.transforms.objects import drop_outside, keep_objects, refuse_proposals
from mmdet.registry import TRANSFORMS
from mmdet.structures.boxes import box_iou


def cut(results: dict, window: tuple[int, int, int, int]) -> None:
    """Let image, boxes and masks be what is seen through `window` (x1, y1, x2, y2), whole pixels; boxes are moved, not
    clipped."""
    x1, y1, x2, y2 = window
    results['img'] = np.ascontiguousarray(results['img'][y1:y2, x1:x2])
    results['img_shape'] = (y2 - y1, x2 - x1)
    if 'gt_bboxes' in results:
        results['gt_bboxes'] = results['gt_bboxes'] - np.array([x1, y1, x1, y1], dtype=np.float32)
    if 'gt_masks' in results:
        results['gt_masks'] = results['gt_masks'].crop(window)


@TRANSFORMS.register_module()
@refuse_overrides(
    'extend/transform.md', _crop_data='transform', _rand_offset='transform', _record_homography_matrix='transform',
)  # fmt: skip
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
        refuse_proposals(results, self)
        cut(results, (x1, y1, x1 + crop_width, y1 + crop_height))
        if 'gt_bboxes' not in results:
            return results
        if 'gt_masks' in results and self.recompute_bbox:
            results['gt_bboxes'] = results['gt_masks'].boxes()
        drop_outside(results, self.bbox_clip_border)
        objects = len(results['gt_bboxes']) - np.count_nonzero(results.get('gt_ignore_flags', 0))
        return results if objects or self.allow_negative_crop else None


@TRANSFORMS.register_module()
class MinIoURandomCrop(BaseTransform):
    """SSD's crop: a random window that every object overlaps by at least an IoU drawn from `min_ious`.

    As likely as each of `min_ious` are the whole image and a window of any overlap. An object is kept where its centre
    is in the window. Ignored objects set no condition, and are kept where any part of them is in the window. (Liu et
    al., SSD, ECCV 2016, section 2.2; as in mmdetection all objects must overlap.)

    Args:
        min_ious: the IoUs to draw from.
        min_crop_size: smallest sides of the window, as a share of the image's.
        bbox_clip_border: clip boxes to the window.
    """

    changes_geometry = True
    _TRIES = 50  # windows before another IoU is drawn
    _LONGEST = 2  # the longer side of a window over the shorter

    def __init__(
        self,
        min_ious: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
        min_crop_size: float = 0.3,
        bbox_clip_border: bool = True,
    ) -> None:
        if not all(0 <= iou <= 1 for iou in min_ious) or not 0 < min_crop_size <= 1:
            raise UserError(f'MinIoURandomCrop: min_ious={min_ious} and min_crop_size={min_crop_size} must be shares, '
                            '0 to 1')
        self.min_ious = tuple(min_ious)
        self.min_crop_size = min_crop_size
        self.bbox_clip_border = bbox_clip_border

    def transform(self, results: dict) -> dict:
        refuse_proposals(results, self)
        modes = (None, 0.0, *self.min_ious)
        while (min_iou := modes[np.random.randint(len(modes))]) is not None:
            for _ in range(self._TRIES):
                window = self._draw_window(*results['img'].shape[:2])
                if window is not None and self._fits(results, window, min_iou):
                    return self._cut(results, window)
        return results

    def _draw_window(self, height: int, width: int) -> tuple[int, int, int, int] | None:
        new_width, new_height = np.random.uniform(self.min_crop_size, 1, 2) * (width, height)
        x1, y1 = np.random.uniform(0, 1, 2) * (width - new_width, height - new_height)
        x1, y1, x2, y2 = int(x1), int(y1), int(x1 + new_width), int(y1 + new_height)
        long = max(new_width, new_height) > self._LONGEST * min(new_width, new_height)
        return None if long or x1 == x2 or y1 == y2 else (x1, y1, x2, y2)

    def _fits(self, results: dict, window: tuple[int, int, int, int], min_iou: float) -> bool:
        """Whether all objects overlap enough and one has its centre inside; any window does where there are none."""
        boxes = results.get('gt_bboxes', np.zeros((0, 4), dtype=np.float32))
        boxes = boxes[~results.get('gt_ignore_flags', np.zeros(len(boxes), dtype=bool))]
        if not len(boxes):
            return True
        overlaps = box_iou(torch.from_numpy(boxes), torch.tensor([window], dtype=torch.float32))
        return bool(overlaps.min() >= min_iou) and bool(_centres_inside(boxes, window).any())

    def _cut(self, results: dict, window: tuple[int, int, int, int]) -> dict:
        if 'gt_bboxes' in results:
            inside = _centres_inside(results['gt_bboxes'], window)
            keep_objects(results, inside | results.get('gt_ignore_flags', np.zeros_like(inside)))
        cut(results, window)
        if 'gt_bboxes' in results:
            drop_outside(results, self.bbox_clip_border)
        return results


def _centres_inside(boxes: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray:
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return ((centres > window[:2]) & (centres < window[2:])).all(axis=1)


@TRANSFORMS.register_module()
class CenterCrop:
    """Refused, wherever a pipeline has it: what else stands behind this name is mmcv's."""

    def __init__(self, *args, **options) -> None:
        raise UserError("mmcv's CenterCrop leaves masks and emptied boxes behind; use RandomCrop, or Resize")
