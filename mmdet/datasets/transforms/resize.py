"""Resizing to a fixed, drawn or chosen size."""

from __future__ import annotations

from collections.abc import Sequence

import mmcv
import numpy as np
from mmcv.transforms import BaseTransform

from mmdet.config.errors import UserError
from mmdet.config.overrides import refuse_overrides
from mmdet.datasets.transforms.objects import BOXES, clip_boxes
from mmdet.datasets.transforms.pad import Pad
from mmdet.registry import TRANSFORMS


@TRANSFORMS.register_module()
@refuse_overrides(
    'extend/transform.md', _resize_img='resize', _resize_bboxes='resize', _resize_masks='resize', _resize_seg='resize',
    _resize_keypoints='resize', _record_homography_matrix='resize',
)  # fmt: skip
class Resize(BaseTransform):
    """Resize the image, its boxes and masks.

    Args:
        scale: (w, h), or one number for both. With `keep_ratio` it is the largest size allowed in either
            orientation: ``(1333, 800)`` makes the short side 800 unless the long side then exceeds 1333.
        scale_factor: instead of `scale`, a factor or a (w, h) pair of factors.
        keep_ratio: keep the aspect ratio.
        clip_object_border: clip the boxes to the image.
        backend, interpolation: mmcv's.
        common_factor: with `keep_ratio`, report the one factor asked for as ``scale_factor``, as mmdetection 0.x did.

    Sets ``scale_factor`` (w, h), the exact ratio of the new to the old size.
    """

    changes_geometry = True

    def __init__(
        self,
        scale: int | tuple[int, int] | None = None,
        scale_factor: float | tuple[float, float] | None = None,
        keep_ratio: bool = False,
        clip_object_border: bool = True,
        backend: str = 'cv2',
        interpolation: str = 'bilinear',
        common_factor: bool = False,
    ) -> None:
        if (scale is None) == (scale_factor is None):
            raise UserError('Resize needs either scale=(w, h) or scale_factor')
        self.scale = (scale, scale) if isinstance(scale, int) else scale
        sides = self.scale or (1, 1)
        if len(sides) != 2 or not all(isinstance(side, (int, float)) and side > 0 for side in sides):
            raise UserError(f'Resize: scale={scale!r} is not (w, h) in pixels')
        self.scale_factor = (scale_factor,) * 2 if isinstance(scale_factor, (int, float)) else scale_factor
        self.keep_ratio = keep_ratio
        self.clip_object_border = clip_object_border
        self.backend = backend
        self.interpolation = interpolation
        self.common_factor = common_factor

    def transform(self, results: dict) -> dict:
        return self.resize(results, self.scale)

    def resize(self, results: dict, scale: tuple[int, int] | None) -> dict:
        """Resize to `scale` (w, h), or by `scale_factor` when it is None."""
        height, width = results['img'].shape[:2]
        if scale is None:
            scale = tuple(int(side * f + 0.5) for side, f in zip((width, height), self.scale_factor))
        if self.keep_ratio:
            factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
            new_width, new_height = int(width * factor + 0.5), int(height * factor + 0.5)
        else:
            new_width, new_height = scale
        new_width, new_height = max(new_width, 1), max(new_height, 1)

        results['img'] = mmcv.imresize(
            results['img'], (new_width, new_height), interpolation=self.interpolation, backend=self.backend
        )
        results['scale'] = scale
        results['img_shape'] = (new_height, new_width)
        results['scale_factor'] = (new_width / width, new_height / height)
        if self.keep_ratio and self.common_factor:
            results['scale_factor'] = (factor, factor)
        results['keep_ratio'] = self.keep_ratio
        for key in BOXES & results.keys():
            boxes = results[key] * np.tile(np.array(results['scale_factor'], dtype=np.float32), 2)
            if self.clip_object_border:
                boxes = clip_boxes(boxes, results['img_shape'])
            results[key] = boxes
        if 'gt_masks' in results:
            results['gt_masks'] = results['gt_masks'].resize(results['img_shape'])
        return results


@TRANSFORMS.register_module()
class FixShapeResize(BaseTransform):
    """Resize to one size, whatever the image's.

    Args:
        width, height: pixels.
        keep_ratio: the image fills them as far as its ratio allows, and is padded at the right and bottom.
        pad_val: value of the padding, see `Pad`.
        clip_object_border, backend, interpolation: see `Resize`.
    """

    changes_geometry = True

    def __init__(
        self,
        width: int,
        height: int,
        pad_val: float | Sequence[float] | dict = 0,
        keep_ratio: bool = False,
        **resize_kwargs,
    ) -> None:
        self.size = width, height
        self.keep_ratio = keep_ratio
        self.resize = Resize(scale=self.size, **resize_kwargs)
        self.pad = Pad(size=self.size, pad_val=pad_val)

    def transform(self, results: dict) -> dict:
        size = self.size
        if self.keep_ratio:
            height, width = results['img'].shape[:2]
            factor = min(size[0] / width, size[1] / height)
            size = int(width * factor + 0.5), int(height * factor + 0.5)
        return self.pad.transform(self.resize.resize(results, size))


def _resize_from(resize_type: str, keep_ratio: bool, resize_kwargs: dict) -> Resize:
    if resize_type not in ('Resize', 'mmdet.Resize'):
        raise UserError(f"resize_type={resize_type!r}; only 'Resize' moves boxes and masks along")
    return Resize(scale=1, keep_ratio=keep_ratio, **resize_kwargs)


@TRANSFORMS.register_module()
@refuse_overrides(
    'extend/transform.md', _random_scale='transform', _random_sample='transform', _random_sample_ratio='transform',
)  # fmt: skip
class RandomResize(BaseTransform):
    """Resize to a random scale.

    Args:
        scale: (w, h), multiplied by a factor drawn from `ratio_range`; or two of them: w and h are then each
            drawn between the two.
        ratio_range: smallest and largest factor, needed with a single scale.
        keep_ratio: keep the aspect ratio.
        resize_type: 'Resize'.
        resize_kwargs: further arguments of `Resize`.
    """

    changes_geometry = True

    def __init__(
        self,
        scale: tuple[int, int] | Sequence[tuple[int, int]],
        ratio_range: tuple[float, float] | None = None,
        keep_ratio: bool = False,
        resize_type: str = 'Resize',
        **resize_kwargs,
    ) -> None:
        self.pair = not isinstance(scale[0], (int, float))
        if self.pair and len(scale) != 2:
            raise UserError(f'RandomResize takes one or two scales, got {scale}; see RandomChoiceResize')
        if not self.pair and ratio_range is None:
            raise UserError(f'RandomResize with one scale {tuple(scale)} needs ratio_range=(low, high)')
        self.scale = scale
        self.ratio_range = ratio_range
        self.resize = _resize_from(resize_type, keep_ratio, resize_kwargs)

    def transform(self, results: dict) -> dict:
        if self.pair:
            scale = tuple(np.random.randint(min(sides), max(sides) + 1) for sides in zip(*self.scale))
        else:
            ratio = np.random.uniform(*self.ratio_range)
            scale = (int(self.scale[0] * ratio), int(self.scale[1] * ratio))
        return self.resize.resize(results, scale)


@TRANSFORMS.register_module()
@refuse_overrides('extend/transform.md', _random_select='transform')
class RandomChoiceResize(BaseTransform):
    """Resize to one of `scales`, each a (w, h), drawn with equal chances.

    Args:
        scales: sizes as `Resize` takes them.
        keep_ratio: keep the aspect ratio.
        resize_type: 'Resize'.
        resize_kwargs: further arguments of `Resize`.
    """

    changes_geometry = True

    def __init__(
        self,
        scales: Sequence[int | tuple[int, int]],
        keep_ratio: bool = False,
        resize_type: str = 'Resize',
        **resize_kwargs,
    ) -> None:
        self.scales = [(s, s) if isinstance(s, int) else tuple(s) for s in scales]
        self.resize = _resize_from(resize_type, keep_ratio, resize_kwargs)

    def transform(self, results: dict) -> dict:
        index = np.random.randint(len(self.scales))
        results['scale_idx'] = index
        return self.resize.resize(results, self.scales[index])
