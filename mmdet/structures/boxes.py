"""Pure functions on boxes: (..., 4) tensors of x1, y1, x2, y2 in pixels, x2 and y2 exclusive.

``offset=1`` gives the inclusive-corner convention of old checkpoints, where a box from x1 to x2
is x2 - x1 + 1 pixels wide.
"""

import torch
from torch import Tensor


def box_area(boxes: Tensor, offset: float = 0.0) -> Tensor:
    """Areas (...,) in square pixels, at least float32; a box with x2 < x1 has area 0."""
    boxes = _at_least_float32(boxes)
    size = (boxes[..., 2:] - boxes[..., :2] + offset).clamp(min=0)
    return size[..., 0] * size[..., 1]


def _at_least_float32(boxes: Tensor) -> Tensor:
    """A square of 256 pixels has an area past float16's largest number."""
    return boxes.to(torch.promote_types(boxes.dtype, torch.float32))


def _intersection(boxes: Tensor, others: Tensor, offset: float) -> Tensor:
    # Coordinate by coordinate: rows of M numbers are fast, pairs (x, y) at the end of (N, M, 2) are not.
    left, top, right, bottom = _at_least_float32(boxes)[:, :, None].unbind(1)
    others_left, others_top, others_right, others_bottom = _at_least_float32(others).T.contiguous()
    width = torch.minimum(right, others_right) - torch.maximum(left, others_left)
    height = torch.minimum(bottom, others_bottom) - torch.maximum(top, others_top)
    if offset:
        width, height = width + offset, height + offset
    return width.clamp_(min=0).mul_(height.clamp_(min=0))


def box_iou(boxes: Tensor, others: Tensor, offset: float = 0.0) -> Tensor:
    """Intersection over union of every pair: (N, 4), (M, 4) -> (N, M), at least float32; 0 where the union is empty."""
    inter = _intersection(boxes, others, offset)
    union = (box_area(boxes, offset)[:, None] + box_area(others, offset)[None]).sub_(inter)
    return inter.div_(union.clamp_(min=torch.finfo(union.dtype).tiny))


def box_iof(boxes: Tensor, others: Tensor, offset: float = 0.0) -> Tensor:
    """Intersection over the area of `boxes`: (N, 4), (M, 4) -> (N, M), at least float32. Used for crowds."""
    inter = _intersection(boxes, others, offset)
    return inter / box_area(boxes, offset)[:, None].clamp(min=torch.finfo(inter.dtype).tiny)


def clip_boxes(boxes: Tensor, shape: tuple[int, int], offset: float = 0.0) -> Tensor:
    """Clip (..., 4) boxes into an image of `shape` (h, w); largest corner is (w - offset, h - offset)."""
    height, width = shape
    x, y = boxes[..., 0::2].clamp(0.0, width - offset), boxes[..., 1::2].clamp(0.0, height - offset)
    return torch.stack([x, y], dim=-1).flatten(-2)


def flip_boxes(boxes: Tensor, shape: tuple[int, int], direction: str) -> Tensor:
    """(..., 4) boxes on the mirrored image of `shape` (h, w); direction 'horizontal', 'vertical' or 'diagonal'."""
    (height, width), (left, top, right, bottom) = shape, boxes.unbind(-1)
    if direction != 'vertical':
        left, right = width - right, width - left
    if direction != 'horizontal':
        top, bottom = height - bottom, height - top
    return torch.stack([left, top, right, bottom], dim=-1)


def scale_boxes(boxes: Tensor, factors: tuple[float, float]) -> Tensor:
    """(..., 4) boxes with x times the first factor and y times the second."""
    return torch.stack([boxes[..., 0::2] * factors[0], boxes[..., 1::2] * factors[1]], dim=-1).flatten(-2)


def unscale_boxes(boxes: Tensor, factors: tuple[float, float]) -> Tensor:
    """(..., 4) boxes with x over the first factor and y over the second: from the input's to the image's pixels."""
    return scale_boxes(boxes, (1 / factors[0], 1 / factors[1]))
