"""Choosing objects."""

from __future__ import annotations

import numpy as np
from mmcv.transforms import BaseTransform

from mmdet.config.errors import UserError
from mmdet.datasets.transforms.objects import keep_objects
from mmdet.registry import TRANSFORMS


@TRANSFORMS.register_module()
class FilterAnnotations(BaseTransform):
    """Drop objects that are too small to learn from.

    Args:
        min_gt_bbox_wh: width and height that a box must exceed, pixels.
        min_gt_mask_area: smallest area of a mask, square pixels.
        by_box, by_mask: which of the two to look at.
        keep_empty: **reject** (return None) an image that loses its last object; with False it is kept
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
            keep &= results['gt_masks'].areas >= self.min_gt_mask_area
        if self.keep_empty and not keep.any():
            return None
        keep_objects(results, keep)
        return results
