"""Any transform of `torchvision.transforms.v2`."""

from __future__ import annotations

import numpy as np
import torch
from mmcv.transforms import BaseTransform

from mmdet.config.errors import UserError
from mmdet.datasets.transforms.objects import drop_outside, refuse_proposals, take_size
from mmdet.registry import TRANSFORMS
from mmdet.structures import BitmapMasks

# These leave every pixel where it is; the others are taken to move them.
_IN_PLACE = frozenset((
    'ColorJitter', 'GaussianBlur', 'GaussianNoise', 'Grayscale', 'Identity', 'JPEG', 'Normalize', 'RGB',
    'RandomAdjustSharpness', 'RandomAutocontrast', 'RandomChannelPermutation', 'RandomEqualize', 'RandomErasing',
    'RandomGrayscale', 'RandomInvert', 'RandomPhotometricDistort', 'RandomPosterize', 'RandomSolarize',
))  # fmt: skip


@TRANSFORMS.register_module('torchvision')
class TorchvisionTransform(BaseTransform):
    """A transform of `torchvision.transforms.v2`, boxes and masks moved with the image.

    ``dict(type='torchvision', name='ColorJitter', brightness=0.3)``. It sees an RGB image. One that moves pixels gets
    polygons as bitmaps and gives bitmaps. Objects that leave the image are dropped.

    Args:
        name: the transform's class.
        options: its arguments.

    Raises:
        UserError: no such transform, wrong arguments, or one that gives no single image with its objects.
    """

    def __init__(self, name: str, **options) -> None:
        from torchvision.transforms import v2  # takes two seconds

        kind = getattr(v2, name, None)
        if not (isinstance(kind, type) and issubclass(kind, v2.Transform)):
            raise UserError(f"dict(type='torchvision', name={name!r}): torchvision.transforms.v2 has no such transform")
        try:
            self.moves = kind(**options)
        except (TypeError, ValueError) as error:
            raise UserError(f"dict(type='torchvision', name={name!r}): {error}") from None
        self.name = name
        self.changes_geometry = name not in _IN_PLACE

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.moves})'

    def transform(self, results: dict) -> dict:
        from torchvision import tv_tensors

        image = tv_tensors.Image(np.ascontiguousarray(results['img'][..., ::-1]).transpose(2, 0, 1))
        if not self.changes_geometry:
            results['img'] = self._pixels(self.moves(image))
            return results
        refuse_proposals(results, self)
        sample, shape = dict(image=image), results['img'].shape[:2]
        if 'gt_bboxes' in results:
            sample['boxes'] = tv_tensors.BoundingBoxes(results['gt_bboxes'], format='XYXY', canvas_size=shape)
        if 'gt_masks' in results:
            sample['masks'] = tv_tensors.Mask(results['gt_masks'].to_ndarray())
        try:
            moved = self.moves(sample)
        except TypeError as error:  # such as: boxes are not supported by AutoAugment
            raise UserError(f"torchvision's {self.name}: {error}") from error
        self._take(results, moved)
        return results

    def _take(self, results: dict, moved: dict) -> None:
        results['img'] = self._pixels(moved['image'])
        take_size(results)
        if 'boxes' not in moved:
            return
        if len(moved['boxes']) != len(results['gt_bboxes']):
            raise UserError(f"torchvision's {self.name} drops objects itself, without their labels; use RandomCrop or "
                            'another transform of this project')
        results['gt_bboxes'] = moved['boxes'].numpy().astype(np.float32)
        if 'masks' in moved:
            results['gt_masks'] = BitmapMasks(moved['masks'].numpy(), *results['img_shape'])
        drop_outside(results, clip=True)

    def _pixels(self, image) -> np.ndarray:
        """(h, w, 3) BGR again."""
        if not isinstance(image, torch.Tensor) or image.ndim != 3:
            raise UserError(f"torchvision's {self.name} gives no single image, (3, h, w); it does not fit a pipeline")
        return np.ascontiguousarray(image.numpy().transpose(1, 2, 0)[..., ::-1])
