"""Pure functions on boxes: (..., 4) tensors of x1, y1, x2, y2 in pixels, x2 and y2 exclusive.

``offset=1`` gives the inclusive-corner convention of old checkpoints, where a box from x1 to x2
is x2 - x1 + 1 pixels wide.
"""

import torch
from torch import Tensor


def box_area(boxes: Tensor, offset: float = 0.0) -> Tensor:
    """Areas (...,) in square pixels; a box with x2 < x1 has area 0."""
    size = (boxes[..., 2:] - boxes[..., :2] + offset).clamp(min=0)
    return size[..., 0] * size[..., 1]


def _intersection(boxes: Tensor, others: Tensor, offset: float) -> Tensor:
    top_left = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    bottom_right = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    size = (bottom_right - top_left + offset).clamp(min=0)
    return size[..., 0] * size[..., 1]


def box_iou(boxes: Tensor, others: Tensor, offset: float = 0.0) -> Tensor:
    """Intersection over union of every pair: (N, 4), (M, 4) -> (N, M); 0 where the union is empty."""
    inter = _intersection(boxes, others, offset)
    union = box_area(boxes, offset)[:, None] + box_area(others, offset)[None] - inter
    return inter / union.clamp(min=torch.finfo(union.dtype).tiny)


def box_iof(boxes: Tensor, others: Tensor, offset: float = 0.0) -> Tensor:
    """Intersection over the area of `boxes`: (N, 4), (M, 4) -> (N, M). Used for crowds."""
    inter = _intersection(boxes, others, offset)
    return inter / box_area(boxes, offset)[:, None].clamp(min=torch.finfo(inter.dtype).tiny)


def clip_boxes(boxes: Tensor, shape: tuple[int, int], offset: float = 0.0) -> Tensor:
    """Clip (..., 4) boxes into a picture of `shape` (h, w); largest corner is (w - offset, h - offset)."""
    height, width = shape
    limit = boxes.new_tensor([width, height, width, height]) - offset
    return torch.minimum(boxes.clamp(min=0), limit)
