"""Padding to a size, and by a random factor."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from mmcv.transforms import BaseTransform

from mmdet.config.errors import UserError
from mmdet.config.overrides import refuse_overrides
from mmdet.datasets.transforms.objects import BOXES
from mmdet.registry import TRANSFORMS


@TRANSFORMS.register_module()
@refuse_overrides('extend/transform.md', _pad_img='transform', _pad_masks='transform', _pad_seg='transform')
class Pad(BaseTransform):
    """Extend image and masks at the right and bottom.

    The preprocessor of the model pads a batch anyway; this is for pipelines that need a fixed size.

    Args:
        size: (w, h) to reach; a larger image stays as it is.
        size_divisor: make both sides multiples of this.
        pad_to_square: make both sides the longer one first.
        pad_val: value of the image's new pixels, or dict(img=..., masks=...).
    """

    changes_geometry = True

    def __init__(
        self,
        size: tuple[int, int] | None = None,
        size_divisor: int | None = None,
        pad_to_square: bool = False,
        pad_val: float | Sequence[float] | dict = 0,
    ) -> None:
        if size is None and size_divisor is None and not pad_to_square:
            raise UserError('Pad needs size=(w, h), size_divisor or pad_to_square=True')
        self.size = size
        self.size_divisor = size_divisor
        self.pad_to_square = pad_to_square
        self.pad_val = dict(pad_val) if isinstance(pad_val, dict) else dict(img=pad_val)

    def transform(self, results: dict) -> dict:
        height, width = results['img'].shape[:2]
        new_height, new_width = height, width
        if self.pad_to_square:
            new_height = new_width = max(height, width)
        if self.size is not None:
            new_width, new_height = max(new_width, self.size[0]), max(new_height, self.size[1])
        if self.size_divisor is not None:
            new_height = -(-new_height // self.size_divisor) * self.size_divisor
            new_width = -(-new_width // self.size_divisor) * self.size_divisor

        value = self.pad_val.get('img', 0)
        value = (value,) * 4 if isinstance(value, (int, float)) else tuple(value)  # OpenCV's most channels here
        results['img'] = cv2.copyMakeBorder(
            results['img'], 0, new_height - height, 0, new_width - width, cv2.BORDER_CONSTANT, value=value
        )
        results['img_shape'] = (new_height, new_width)
        results['pad_shape'] = results['img'].shape
        if 'gt_masks' in results:
            results['gt_masks'] = results['gt_masks'].pad(results['img_shape'], self.pad_val.get('masks', 0))
        return results


@TRANSFORMS.register_module()
class Expand(BaseTransform):
    """SSD's zoom out: the image somewhere on a larger one of one colour (Liu et al., ECCV 2016, section 3.6).

    Args:
        mean: the colour, 0 to 255; usually the preprocessor's mean.
        to_rgb: `mean` is in the order RGB; with False it is in the image's, BGR.
        ratio_range: smallest and largest factor of both sides, 1 or more.
        prob: chance to do it.
    """

    changes_geometry = True

    def __init__(
        self,
        mean: Sequence[float] = (0, 0, 0),
        to_rgb: bool = True,
        ratio_range: tuple[float, float] = (1, 4),
        prob: float = 0.5,
    ) -> None:
        if not 1 <= ratio_range[0] <= ratio_range[1]:
            raise UserError(f'Expand: ratio_range={ratio_range} must be (smallest, largest), both at least 1')
        self.colour = tuple(mean)[::-1] if to_rgb else tuple(mean)
        self.ratio_range = ratio_range
        self.prob = prob

    def transform(self, results: dict) -> dict:
        if np.random.uniform() >= self.prob:
            return results
        img = results['img']
        height, width = img.shape[:2]
        ratio = np.random.uniform(*self.ratio_range)
        new_height, new_width = int(height * ratio), int(width * ratio)
        left = int(np.random.uniform(0, width * ratio - width))
        top = int(np.random.uniform(0, height * ratio - height))

        results['img'] = np.full((new_height, new_width, *img.shape[2:]), self.colour, dtype=img.dtype)
        results['img'][top : top + height, left : left + width] = img
        results['img_shape'] = (new_height, new_width)
        for key in BOXES & results.keys():
            results[key] = results[key] + np.array([left, top, left, top], dtype=np.float32)
        if 'gt_masks' in results:
            results['gt_masks'] = results['gt_masks'].expand(new_height, new_width, top, left)
        return results
