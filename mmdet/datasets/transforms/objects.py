"""The entries of a sample's dict that hold one row per box, and what several transforms do to them."""

from __future__ import annotations

import numpy as np

BOXES = {'gt_bboxes', 'proposals'}
_PER_OBJECT = ('gt_bboxes', 'gt_bboxes_labels', 'gt_ignore_flags', 'gt_masks')


def keep_objects(results: dict, keep: np.ndarray) -> None:
    """Keep the ground-truth objects that `keep`, (G,) bool, selects."""
    for key in _PER_OBJECT:
        if key in results:
            results[key] = results[key][keep]


def clip_boxes(boxes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(N, 4) xyxy boxes clipped to an image of `shape` (h, w)."""
    height, width = shape
    return np.clip(boxes, 0, np.array([width, height, width, height], dtype=boxes.dtype))
