"""Rotation, scale, shear and shift in one map."""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, radians, sin, tan

import numpy as np
from mmcv.transforms import BaseTransform

from mmdet.config.errors import UserError
from mmdet.datasets.transforms.objects import drop_outside, refuse_proposals
from mmdet.registry import TRANSFORMS
from mmdet.structures.masks import warp_pixels


@TRANSFORMS.register_module()
class RandomAffine(BaseTransform):
    """Scale, then rotate, then shear the image about its top left corner, then shift it.

    A box becomes the box around its four corners. Objects that leave the image are dropped.

    Args:
        max_rotate_degree: rotation between minus this and this, degrees.
        max_translate_ratio: shift between minus this and this, a share of the new image's sides.
        scaling_ratio_range: smallest and largest scale.
        max_shear_degree: shear of x and of y between minus this and this, degrees.
        border: pixels added to (width, height) at both ends, negative after `Mosaic`: ``border=(-320, -320)`` makes one
            image's size of its mosaic of 640.
        border_val: BGR of what no pixel moves to, 0 to 255.
        bbox_clip_border: clip boxes to the image.
    """

    changes_geometry = True

    def __init__(
        self,
        max_rotate_degree: float = 10.0,
        max_translate_ratio: float = 0.1,
        scaling_ratio_range: tuple[float, float] = (0.5, 1.5),
        max_shear_degree: float = 2.0,
        border: tuple[int, int] = (0, 0),
        border_val: Sequence[float] = (114, 114, 114),
        bbox_clip_border: bool = True,
    ) -> None:
        if not 0 < scaling_ratio_range[0] <= scaling_ratio_range[1]:
            raise UserError(f'RandomAffine: scaling_ratio_range={scaling_ratio_range} must be (smallest, largest), '
                            'above 0')
        if not 0 <= max_translate_ratio <= 1:
            raise UserError(f'RandomAffine: max_translate_ratio={max_translate_ratio} must be a share, 0 to 1')
        self.max_rotate_degree = max_rotate_degree
        self.max_translate_ratio = max_translate_ratio
        self.scaling_ratio_range = scaling_ratio_range
        self.max_shear_degree = max_shear_degree
        self.border = border
        self.border_val = border_val
        self.bbox_clip_border = bbox_clip_border

    def transform(self, results: dict) -> dict:
        refuse_proposals(results, self)
        height, width = (side + 2 * more for side, more in zip(results['img'].shape[:2], self.border[::-1]))
        if min(height, width) < 1:
            raise UserError(f'RandomAffine: border={self.border} leaves nothing of an image of {results["img_shape"]} '
                            '(h, w)')
        matrix = self._draw(height, width)
        results['img'] = warp_pixels(results['img'], matrix, (height, width), self.border_val)
        results['img_shape'] = (height, width)
        if 'gt_masks' in results:
            results['gt_masks'] = results['gt_masks'].warp(matrix, (height, width))
        if 'gt_bboxes' in results:
            results['gt_bboxes'] = _warp_boxes(results['gt_bboxes'], matrix)
            drop_outside(results, self.bbox_clip_border)
        return results

    def _draw(self, height: int, width: int) -> np.ndarray:
        """A map (2, 3) of points (x, y) in pixels."""
        angle = radians(np.random.uniform(-self.max_rotate_degree, self.max_rotate_degree))
        scale = np.random.uniform(*self.scaling_ratio_range)
        shears = np.random.uniform(-self.max_shear_degree, self.max_shear_degree, 2)
        shear_x, shear_y = (tan(radians(degrees)) for degrees in shears)
        shift = np.random.uniform(-self.max_translate_ratio, self.max_translate_ratio, 2) * (width, height)
        rotation = np.array([[cos(angle), -sin(angle)], [sin(angle), cos(angle)]])
        shear = np.array([[1, shear_x], [shear_y, 1]])
        return np.column_stack([scale * shear @ rotation, shift])


def _warp_boxes(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Boxes (G, 4) around what becomes of the corners of `boxes`."""
    corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2) @ matrix[:, :2].T + matrix[:, 2]
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32)
