"""mmdetection 3's `mmdet.structures.mask`, for code that was written for it; ours are in `mmdet.structures.masks`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmdet.config.absent import absent
from mmdet.structures.masks import BitmapMasks, PolygonMasks
from mmdet.structures.rle_masks import RLEMasks

__all__ = ['BitmapMasks', 'PolygonMasks', 'encode_mask_results', 'mask2bbox']


def encode_mask_results(mask_results: Sequence) -> list[dict]:
    """Bitmaps (n, H, W) -> n COCO run lengths, dict(size=[H, W], counts=bytes); masks that are run lengths stay so."""
    if isinstance(mask_results, RLEMasks) or len(mask_results) == 0:
        return [dict(mask) for mask in mask_results]
    return [dict(mask) for mask in RLEMasks.of(mask_results, *mask_results[0].shape)]


def mask2bbox(masks: Tensor) -> Tensor:
    """Boxes (n, 4) float32, xyxy in pixels, around the pixels of bitmaps (n, H, W); zeros for an empty one."""
    masks = masks.to_tensor() if isinstance(masks, RLEMasks) else torch.as_tensor(masks)
    return BitmapMasks(masks.cpu().numpy() > 0, *masks.shape[-2:]).get_bboxes().to(masks.device)


_HERE = 'masks.crop_and_resize(boxes, indices, size) draws the targets of a mask head'
__path__: list[str] = []  # modules below it: see mmdet.moved
__getattr__ = absent(
    __name__,
    BaseInstanceMasks='masks are BitmapMasks or PolygonMasks',
    mask_target=_HERE,
    split_combined_polys='polygons of an instance stay a list',
)
