"""Operators: compiled where the extension is built, torchvision's and plain torch's elsewhere."""

from mmdet.ops import batch_norm as _batch_norm  # noqa: F401  registers its fake kernels
from mmdet.ops import cbn as _cbn  # noqa: F401  likewise
from mmdet.ops.library import BUILD, COMPILED, describe
from mmdet.ops.masks import mask_targets, masks_to_rle, paste_masks, rasterize_polygons
from mmdet.ops.nms import apply_nms, batched_nms, nms, soft_nms
from mmdet.ops.roi_align import RoIAlign, multiscale_roi_align, roi_align

__all__ = [
    'BUILD', 'COMPILED', 'RoIAlign', 'apply_nms', 'batched_nms', 'describe', 'mask_targets', 'masks_to_rle',
    'multiscale_roi_align', 'nms', 'paste_masks', 'rasterize_polygons', 'roi_align', 'soft_nms',
]
