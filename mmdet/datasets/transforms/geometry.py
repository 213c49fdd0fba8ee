"""The pipeline: from a data set's dict to a picture and a `DetDataSample`.

Keys that travel through it (h, w: size of the picture now; G ground-truth objects):

- ``img_path``, ``img_id``, ``instances`` from the data set;
- ``img`` (h, w, 3) uint8 BGR, ``img_shape`` (h, w), ``ori_shape`` (h, w) as read,
  ``scale_factor`` (w, h), ``flip``, ``flip_direction``;
- ``gt_bboxes`` (G, 4) float32 x1, y1, x2, y2 in pixels, ``gt_bboxes_labels`` (G,) int64,
  ``gt_ignore_flags`` (G,) bool, ``gt_masks`` of length G (`PolygonMasks` or `BitmapMasks`);
- ``proposals`` (P, 4) float32 for Fast R-CNN.

Every transform that moves the picture moves boxes and masks with it. Random numbers come from numpy's
global generator, which `mmdet.engine.seeding` seeds for each sample. A transform that returns None rejects
the picture; the data set then draws another.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import mmcv
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.structures import InstanceData

from mmdet.config.errors import UserError
from mmdet.registry import TRANSFORMS
from mmdet.structures import DetDataSample

_BOXES = {'gt_bboxes', 'proposals'}
_PER_OBJECT = ('gt_bboxes', 'gt_bboxes_labels', 'gt_ignore_flags', 'gt_masks')


def _keep_objects(results: dict, keep: np.ndarray) -> None:
    for key in _PER_OBJECT:
        if key in results:
            results[key] = results[key][keep]


def _clip_boxes(boxes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    height, width = shape
    return np.clip(boxes, 0, np.array([width, height, width, height], dtype=boxes.dtype))


@TRANSFORMS.register_module()
class Resize(BaseTransform):
    """Resize the picture, its boxes and masks.

    Args:
        scale: (w, h), or one number for both. With `keep_ratio` it is the largest size allowed, whichever way
            the picture lies: ``(1333, 800)`` makes the short side 800 unless the long side then exceeds 1333.
        scale_factor: instead of `scale`, a factor or a (w, h) pair of factors.
        keep_ratio: keep the shape of the picture.
        clip_object_border: clip the boxes to the picture.
        backend, interpolation: mmcv's.
        common_factor: with `keep_ratio`, report the one factor asked for as ``scale_factor``, as mmdetection 0.x did.

    Sets ``scale_factor`` (w, h), the exact ratio of the new to the old size.
    """

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
        for key in _BOXES & results.keys():
            boxes = results[key] * np.tile(np.array(results['scale_factor'], dtype=np.float32), 2)
            if self.clip_object_border:
                boxes = _clip_boxes(boxes, results['img_shape'])
            results[key] = boxes
        if 'gt_masks' in results:
            results['gt_masks'] = results['gt_masks'].resize(results['img_shape'])
        return results


def _resize_from(resize_type: str, keep_ratio: bool, resize_kwargs: dict) -> Resize:
    if resize_type not in ('Resize', 'mmdet.Resize'):
        raise UserError(f"resize_type={resize_type!r}; only 'Resize' moves boxes and masks along")
    return Resize(scale=1, keep_ratio=keep_ratio, **resize_kwargs)


@TRANSFORMS.register_module()
class RandomResize(BaseTransform):
    """Resize to a random scale.

    Args:
        scale: (w, h), multiplied by a factor drawn from `ratio_range`; or two of them: w and h are then each
            drawn between the two.
        ratio_range: smallest and largest factor, needed with a single scale.
        keep_ratio: keep the shape of the picture.
        resize_type: 'Resize'.
        resize_kwargs: further arguments of `Resize`.
    """

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
class RandomChoiceResize(BaseTransform):
    """Resize to one of `scales`, each a (w, h), drawn with equal chances.

    Args:
        scales: sizes as `Resize` takes them.
        keep_ratio: keep the shape of the picture.
        resize_type: 'Resize'.
        resize_kwargs: further arguments of `Resize`.
    """

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


@TRANSFORMS.register_module()
class RandomFlip(BaseTransform):
    """Mirror the picture, its boxes and masks.

    Args:
        prob: chance of a flip; with a list of directions, shared equally among them. A list gives the chance
            of each direction.
        direction: 'horizontal', 'vertical', 'diagonal', or a list of them.
    """

    def __init__(
        self,
        prob: float | Sequence[float] | None = None,
        direction: str | Sequence[str] = 'horizontal',
    ) -> None:
        self.directions = [direction] if isinstance(direction, str) else list(direction)
        for name in self.directions:
            if name not in ('horizontal', 'vertical', 'diagonal'):
                raise UserError(f"direction={name!r}; use 'horizontal', 'vertical' or 'diagonal'")
        if prob is None:
            raise UserError('RandomFlip needs prob, the chance of a flip (0 to 1)')
        single = isinstance(prob, (int, float))
        self.probs = [prob / len(self.directions)] * len(self.directions) if single else list(prob)
        if len(self.probs) != len(self.directions) or min(self.probs) < 0 or sum(self.probs) > 1 + 1e-6:
            raise UserError(f'prob={prob} does not give each of {self.directions} a chance (sum 0 to 1)')

    def transform(self, results: dict) -> dict:
        draw = np.random.rand()
        index = int(np.searchsorted(np.cumsum(self.probs), draw, side='right'))
        results['flip'] = index < len(self.directions)
        results['flip_direction'] = self.directions[index] if results['flip'] else None
        if results['flip']:
            self._flip(results, results['flip_direction'])
        return results

    @staticmethod
    def _flip(results: dict, direction: str) -> None:
        results['img'] = cv2.flip(results['img'], dict(horizontal=1, vertical=0, diagonal=-1)[direction])
        height, width = results['img'].shape[:2]
        for key in _BOXES & results.keys():
            boxes = results[key].copy()
            if direction != 'vertical':
                boxes[:, 0::2] = width - boxes[:, 2::-2]
            if direction != 'horizontal':
                boxes[:, 1::2] = height - boxes[:, 3::-2]
            results[key] = boxes
        if 'gt_masks' in results:
            results['gt_masks'] = results['gt_masks'].flip(direction)


@TRANSFORMS.register_module()
class RandomCrop(BaseTransform):
    """Cut a random window out of the picture; objects outside it are dropped.

    Args:
        crop_size: (w, h) in pixels ('absolute'), or as shares of the picture ('relative'), or the
            smallest and largest side ('absolute_range': both sides between them) or the smallest shares of
            height and width, in this order as in mmdetection ('relative_range': up to 1).
        crop_type: 'absolute', 'absolute_range', 'relative' or 'relative_range'.
        allow_negative_crop: keep a window without objects; otherwise the picture is rejected (None).
        recompute_bbox: take boxes from the cropped masks; an object without a pixel of its mask left is dropped.
        bbox_clip_border: clip boxes to the window.
    """

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

    def _size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the window."""
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
        crop_height, crop_width = self._size(height, width)
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
        seen = _clip_boxes(boxes, results['img_shape'])
        results['gt_bboxes'] = seen if self.bbox_clip_border else boxes
        _keep_objects(results, (seen[:, 2] > seen[:, 0]) & (seen[:, 3] > seen[:, 1]))
        objects = len(results['gt_bboxes']) - np.count_nonzero(results.get('gt_ignore_flags', 0))
        return results if objects or self.allow_negative_crop else None


@TRANSFORMS.register_module()
class CenterCrop:
    """Refused, wherever a pipeline has it: what else stands behind this name is mmcv's."""

    def __init__(self, *args, **options) -> None:
        raise UserError("mmcv's CenterCrop leaves masks and emptied boxes behind; use RandomCrop, or Resize")


@TRANSFORMS.register_module()
class FilterAnnotations(BaseTransform):
    """Drop objects that are too small to learn from.

    Args:
        min_gt_bbox_wh: width and height that a box must exceed, pixels.
        min_gt_mask_area: smallest area of a mask, square pixels.
        by_box, by_mask: which of the two to look at.
        keep_empty: **reject** (return None) a picture that loses its last object; with False it goes on
            without objects. The name is the one existing configs use.
    """

    def __init__(
        self,
        min_gt_bbox_wh: tuple[float, float] = (1, 1),
        min_gt_mask_area: float = 1,
        by_box: bool = True,
        by_mask: bool = False,
        keep_empty: bool = True,
    ) -> None:
        if not (by_box or by_mask):
            raise UserError('FilterAnnotations needs by_box=True or by_mask=True')
        self.min_gt_bbox_wh = min_gt_bbox_wh
        self.min_gt_mask_area = min_gt_mask_area
        self.by_box = by_box
        self.by_mask = by_mask
        self.keep_empty = keep_empty

    def transform(self, results: dict) -> dict | None:
        boxes = results['gt_bboxes']
        if len(boxes) == 0:
            return results
        keep = np.ones(len(boxes), dtype=bool)
        if self.by_box:
            size = boxes[:, 2:] - boxes[:, :2]
            keep &= (size > np.array(self.min_gt_bbox_wh, dtype=np.float32)).all(axis=1)
        if self.by_mask:
            if 'gt_masks' not in results:
                raise UserError('FilterAnnotations: by_mask=True needs masks; set with_mask=True of LoadAnnotations')
            keep &= results['gt_masks'].areas() >= self.min_gt_mask_area
        if self.keep_empty and not keep.any():
            return None
        _keep_objects(results, keep)
        return results


@TRANSFORMS.register_module()
class Pad(BaseTransform):
    """Extend picture and masks at the right and bottom.

    The preprocessor of the model pads a batch anyway; this is for pipelines that need a fixed size.

    Args:
        size: (w, h) to reach; a larger picture stays as it is.
        size_divisor: make both sides multiples of this.
        pad_to_square: make both sides the longer one first.
        pad_val: value of the picture's new pixels, or dict(img=..., masks=...).
    """

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
        value = (value,) * 3 if isinstance(value, (int, float)) else tuple(value)
        results['img'] = cv2.copyMakeBorder(
            results['img'], 0, new_height - height, 0, new_width - width, cv2.BORDER_CONSTANT, value=value
        )
        results['img_shape'] = (new_height, new_width)
        results['pad_shape'] = results['img'].shape
        if 'gt_masks' in results:
            results['gt_masks'] = results['gt_masks'].pad(results['img_shape'], self.pad_val.get('masks', 0))
        return results


@TRANSFORMS.register_module()
class PackDetInputs(BaseTransform):
    """The end of the pipeline: ``dict(inputs=(3, h, w) uint8 tensor, data_samples=DetDataSample)``.

    Ignored objects (crowds) go to ``ignored_instances``, the others to ``gt_instances``.

    Args:
        meta_keys: what to keep as metainfo, as far as it is there.
    """

    _NAMES = dict(gt_bboxes='bboxes', gt_bboxes_labels='labels', gt_masks='masks')

    def __init__(
        self,
        meta_keys: Sequence[str] = (
            'img_id',
            'img_path',
            'ori_shape',
            'img_shape',
            'scale_factor',
            'flip',
            'flip_direction',
        ),
    ) -> None:
        self.meta_keys = tuple(meta_keys)

    def transform(self, results: dict) -> dict:
        img = np.ascontiguousarray(results['img'].reshape(*results['img'].shape[:2], -1))
        height, width, channels = img.shape
        planes = np.empty((channels, height, width), dtype=img.dtype)
        cv2.split(img, list(planes))  # several times faster than a transposed copy
        inputs = torch.from_numpy(planes)

        sample = DetDataSample(metainfo={k: results[k] for k in self.meta_keys if k in results})
        gt, ignored = InstanceData(), InstanceData()
        flags = results.get('gt_ignore_flags')
        for key, name in self._NAMES.items():
            if key not in results:
                continue
            values = results[key]
            split = (values, values[:0]) if flags is None else (values[~flags], values[flags])
            gt[name], ignored[name] = (torch.from_numpy(v) if isinstance(v, np.ndarray) else v for v in split)
        sample.gt_instances = gt
        sample.ignored_instances = ignored
        if 'proposals' in results:
            sample.proposals = InstanceData(bboxes=torch.from_numpy(results['proposals']))
        return dict(inputs=inputs, data_samples=sample)


