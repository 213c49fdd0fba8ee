"""The entries of a sample's dict that hold one row per box, and what several transforms do to them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmdet.config.errors import UserError

BOXES = {'gt_bboxes', 'proposals'}
_PER_OBJECT = ('gt_bboxes', 'gt_bboxes_labels', 'gt_ignore_flags', 'gt_masks')


def keep_objects(results: dict, keep: np.ndarray) -> None:
    """Keep the ground-truth objects that `keep`, (G,) bool, selects."""
    for key in _PER_OBJECT:
        if key in results:
            results[key] = results[key][keep]


def join_objects(results: dict, parts: Sequence[dict]) -> None:
    """Give `results` the objects of several samples, whose boxes and masks are on one image already."""
    for key in _PER_OBJECT:
        if key in results:
            entries = [part[key] for part in parts]
            results[key] = np.concatenate(entries) if key != 'gt_masks' else _join_masks(entries)


def _join_masks(parts: Sequence):
    if len({type(part) for part in parts}) > 1:
        parts = [part.to_bitmap() for part in parts]
    return type(parts[0]).cat(parts)


def clip_boxes(boxes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(N, 4) xyxy boxes clipped to an image of `shape` (h, w)."""
    height, width = shape
    return np.clip(boxes, 0, np.array([width, height, width, height], dtype=boxes.dtype))


def take_size(results: dict) -> None:
    """Take the size from the image that a foreign transform made; if it is another, as after a resize."""
    (height, width), (new_height, new_width) = results['img_shape'], results['img'].shape[:2]
    if (new_height, new_width) != (height, width):
        results['img_shape'] = (new_height, new_width)
        results['scale_factor'] = (new_width / width, new_height / height)


def drop_outside(results: dict, clip: bool) -> None:
    """Drop the objects whose box is outside the image; with `clip` cut the others' at its border."""
    seen = clip_boxes(results['gt_bboxes'], results['img_shape'])
    if clip:
        results['gt_bboxes'] = seen
    keep_objects(results, (seen[:, 2] > seen[:, 0]) & (seen[:, 3] > seen[:, 1]))


def refuse_proposals(results: dict, step: object) -> None:
    """Raise UserError where proposals come to a `step` after which some would be outside the image."""
    if 'proposals' in results:
        raise UserError(f'{type(step).__name__} does not move proposals; leave it out of a Fast R-CNN pipeline')
