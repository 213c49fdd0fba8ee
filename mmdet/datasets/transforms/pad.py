"""Padding to a size."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
from mmcv.transforms import BaseTransform

from mmdet.config.errors import UserError
from mmdet.config.overrides import refuse_overrides
from mmdet.registry import TRANSFORMS


@TRANSFORMS.register_module()
@refuse_overrides(_pad_img='transform', _pad_masks='transform', _pad_seg='transform')
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
