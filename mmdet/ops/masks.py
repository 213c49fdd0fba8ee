"""Masks between a RoI's small frame, the picture and COCO's run lengths.

D detections with masks (D, h, w) of probabilities and boxes (D, 4) xyxy in pixels; (H, W) the picture.
A mask spans its box; a pixel takes the bilinear sample at its centre, 0 beyond the mask's border (grid_sample with
align_corners=False). Boxes without area, infinite and NaN boxes hold no pixels.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmdet.ops.library import COMPILED, serves


def paste_masks(masks: Tensor, boxes: Tensor, image_shape: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """Masks on the picture: (D, h, w), (D, 4) -> (D, H, W) bool, true where the sample is >= threshold.

    Raises:
        ValueError: shapes or devices do not fit, or threshold is not above 0.
    """
    height, width = _check('paste_masks', masks, boxes, image_shape, threshold)
    op = torch.ops.mmdet.paste_masks if serves(masks) else _plain_paste
    return op(masks, boxes, height, width, threshold)


def masks_to_rle(masks: Tensor, boxes: Tensor, image_shape: tuple[int, int], threshold: float = 0.5) -> list[dict]:
    """The same as COCO run lengths, without drawing pictures: a list of dict(size=[H, W], counts=bytes).

    Byte for byte what `pycocotools.mask.encode` makes of `paste_masks`. Runs on the CPU; masks and boxes on
    another device are copied there (they are small).

    Raises:
        ValueError: shapes or devices do not fit, or threshold is not above 0.
    """
    height, width = _check('masks_to_rle', masks, boxes, image_shape, threshold)
    masks, boxes = masks.detach().cpu(), boxes.detach().cpu()
    if not COMPILED:
        from pycocotools import mask as coco_mask
        pasted = _plain_paste(masks, boxes, height, width, threshold)
        return [coco_mask.encode(np.asfortranarray(m.numpy().astype(np.uint8))) for m in pasted]
    data, offsets = torch.ops.mmdet.masks_to_rle(masks, boxes, height, width, threshold)
    data, offsets = data.numpy().tobytes(), offsets.tolist()
    return [dict(size=[height, width], counts=data[a:b]) for a, b in zip(offsets, offsets[1:])]


def mask_targets(polygons: Sequence[Sequence], boxes: Tensor, size: int | tuple[int, int],
                 indices: Tensor | Sequence[int] | None = None) -> Tensor:
    """Training targets: each RoI's polygons drawn in its own frame -> (R, size, size) float32 of 0 and 1.

    `polygons` holds, for each RoI or, with `indices` (R,), for each instance, a list of flat (x, y, ...) arrays in
    pixels; `boxes` (R, 4). A box's polygons are shifted to its corner, scaled by size over its sides (at least
    one pixel) and drawn by COCO's rule: equal to pycocotools' frPyObjects, merge and decode at that size.
    The result is on the boxes' device.

    Raises:
        ValueError: a polygon with fewer than three points, or shapes that do not fit.
    """
    size = (size, size) if isinstance(size, int) else tuple(size)
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f'mask_targets: boxes must be (R, 4) xyxy, got {tuple(boxes.shape)}')
    if indices is None:
        if len(polygons) != len(boxes):
            raise ValueError(f'mask_targets: {len(boxes)} boxes but polygons of {len(polygons)}')
        indices = torch.arange(len(boxes))
    indices = torch.as_tensor(indices).cpu().long()
    masks = _rasterize(polygons, indices, boxes.detach().cpu(), *size)
    return masks.to(device=boxes.device, dtype=torch.float32)


def rasterize_polygons(polygons: Sequence[Sequence], height: int, width: int) -> Tensor:
    """Instances' polygons on the picture by COCO's rule: n lists of flat arrays -> (n, height, width) uint8 CPU.

    Raises:
        ValueError: a polygon with fewer than three points.
    """
    boxes = torch.tensor([[0.0, 0.0, width, height]], dtype=torch.float64).expand(len(polygons), 4)
    return _rasterize(polygons, torch.arange(len(polygons)), boxes, height, width)


def _check(name: str, masks: Tensor, boxes: Tensor, image_shape, threshold: float) -> tuple[int, int]:
    if masks.dim() != 3 or boxes.shape != (masks.shape[0], 4):
        raise ValueError(f'{name}: needs masks (D, h, w) and boxes (D, 4), got {tuple(masks.shape)} and '
                         f'{tuple(boxes.shape)}')
    if masks.shape[1] == 0 or masks.shape[2] == 0:
        raise ValueError(f'{name}: masks have no cells: {tuple(masks.shape)}')
    if masks.device != boxes.device:
        raise ValueError(f'{name}: masks are on {masks.device}, boxes on {boxes.device}')
    if not (masks.is_floating_point() and boxes.is_floating_point()):
        raise ValueError(f'{name}: masks must be floating-point probabilities and boxes floating point, got '
                         f'{masks.dtype} and {boxes.dtype}')
    if not threshold > 0:
        raise ValueError(f'{name}: threshold must be above 0, got {threshold}')
    height, width = image_shape
    if height < 0 or width < 0:
        raise ValueError(f'{name}: image_shape must be (height, width), got {tuple(image_shape)}')
    return int(height), int(width)


def _plain_paste(masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float) -> Tensor:
    boxes = boxes.float()
    sides = boxes[:, 2:] - boxes[:, :2]
    valid = boxes.isfinite().all(1) & sides.isfinite().all(1) & (sides > 0).all(1)
    boxes = torch.where(valid[:, None], boxes, boxes.new_tensor([0, 0, 1, 1]))
    result = torch.zeros(len(masks), height, width, dtype=torch.bool, device=masks.device)
    if result.numel() == 0:
        return result
    x = torch.arange(width, device=masks.device) + 0.5
    y = torch.arange(height, device=masks.device) + 0.5
    for i, (mask, (x1, y1, x2, y2)) in enumerate(zip(masks, boxes)):
        if valid[i]:
            across, down = (x - x1) / (x2 - x1) * 2 - 1, (y - y1) / (y2 - y1) * 2 - 1
            grid = torch.stack([across.expand(height, width), down[:, None].expand(height, width)], -1)
            sampled = F.grid_sample(mask[None, None].float(), grid[None], align_corners=False)
            result[i] = sampled[0, 0] >= threshold
    return result


def _flatten(polygons: Sequence[Sequence]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points (p, 2) float64, where each polygon begins among them, where each instance begins among polygons."""
    arrays = [np.asarray(part, dtype=np.float64).reshape(-1) for instance in polygons for part in instance]
    for array in arrays:
        if array.size < 6 or array.size % 2:
            raise ValueError('a polygon must be a flat array x1, y1, x2, y2, ... of three points or more, got '
                             f'{array.size} numbers')
    points = np.concatenate(arrays).reshape(-1, 2) if arrays else np.zeros((0, 2))
    parts = np.cumsum([0, *(a.size // 2 for a in arrays)])
    instances = np.cumsum([0, *(len(instance) for instance in polygons)])
    return points, parts, instances


def _rasterize(polygons: Sequence[Sequence], indices: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    points, parts, instances = _flatten(polygons)
    if COMPILED:
        return torch.ops.mmdet.rasterize_polygons(
            torch.from_numpy(points), torch.from_numpy(parts), torch.from_numpy(instances), indices, boxes, height,
            width)
    result = np.zeros((len(boxes), height, width), dtype=np.uint8)
    for mask, index, box in zip(result, indices.tolist(), boxes.double().numpy()):
        with np.errstate(invalid='ignore', over='ignore'):
            scale = np.array([width, height]) / np.maximum(box[2:] - box[:2], 1)
            drawn = [(points[a:b] - box[:2]) * scale
                     for a, b in zip(parts[instances[index]:instances[index + 1]], parts[instances[index] + 1:])]
        for corners in drawn:
            if np.isfinite(corners).all():  # infinite and NaN boxes or corners enclose nothing
                mask |= _plain_polygon(corners, height, width)
    return torch.from_numpy(result)


def _plain_polygon(corners: np.ndarray, height: int, width: int) -> np.ndarray:
    """One polygon (n, 2) by COCO's rule, as `rasterize_polygons` of csrc/cpu/masks.cpp does it.

    pycocotools would store each fifth of a pixel along an edge: one corner far away takes all memory.
    """
    start = np.clip(5 * corners + 0.5, -1e9, 1e9).astype(np.int64)
    toggles = np.zeros(height * width, dtype=np.uint8)  # how often the inside changes at a pixel, modulo 256
    ends = np.concatenate([start[1:], start[:1]])
    for first in range(0, len(start), 256):  # edges at a time: E edges, W columns
        (xs, ys), (xe, ye) = (side[first:first + 256].T[..., None] for side in (start, ends))
        dx, dy = np.abs(xe - xs), np.abs(ye - ys)
        lying = dx >= dy
        turned = np.where(lying, xs > xe, ys > ye)
        xs, xe, ys, ye = *np.where(turned, (xe, xs), (xs, xe)), *np.where(turned, (ye, ys), (ys, ye))
        slope = np.where(lying, ye - ys, xe - xs) / np.maximum(np.maximum(dx, dy), 1)
        u = 5 * np.arange(width) + 2  # the middle of each column
        crossed = (u >= np.minimum(xs, xe)) & (u + 1 <= np.maximum(xs, xe))  # (E, W)
        t = u - xs
        lying_v = np.minimum((ys + slope * t + 0.5).astype(np.int64), (ys + slope * (t + 1) + 0.5).astype(np.int64))
        # of a steep edge, t: the first step on the far side of the middle
        steep = crossed & ~lying
        t = np.clip((u + 0.5 - xs) / np.where(steep, slope, 1), 0, dy).astype(np.int64)
        while (back := steep & (t > 0) & _beyond(t, xs, slope, u)).any():
            t -= back
        while (on := steep & (t < dy) & ~_beyond(t, xs, slope, u)).any():
            t += on
        crossed &= lying | (_beyond(t, xs, slope, u) & (t > 0))
        v = np.where(lying, lying_v, t - 1 + ys)
        rows = np.ceil(np.clip((v + 0.5) / 5 - 0.5, 0, height)).astype(np.int64)
        at = (np.arange(width) * height + rows)[crossed]
        np.add.at(toggles, at[at < height * width], np.uint8(1))
    return (np.cumsum(toggles, dtype=np.uint8) & 1).reshape(width, height).T


def _beyond(t: np.ndarray, xs: np.ndarray, slope: np.ndarray, u: np.ndarray) -> np.ndarray:
    x = (xs + slope * t + 0.5).astype(np.int64)
    return np.where(slope > 0, x > u, x <= u)




if COMPILED:

    @torch.library.register_fake('mmdet::paste_masks')
    def _(masks, boxes, height, width, threshold):
        return masks.new_empty((masks.shape[0], height, width), dtype=torch.bool)

    @torch.library.register_fake('mmdet::masks_to_rle')
    def _(masks, boxes, height, width, threshold):
        total = torch.library.get_ctx().new_dynamic_size()
        return (torch.empty(total, dtype=torch.uint8), torch.empty(masks.shape[0] + 1, dtype=torch.long))

    @torch.library.register_fake('mmdet::rasterize_polygons')
    def _(points, parts, instances, indices, boxes, height, width):
        return points.new_empty((boxes.shape[0], height, width), dtype=torch.uint8)
