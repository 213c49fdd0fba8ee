"""Instance masks of one image: `PolygonMasks` while they can stay polygons, `BitmapMasks` otherwise.

Legend: n instances, (h, w) the image, R boxes (RoIs), s side of a mask target.

Coordinates are continuous: pixel (row i, column j) covers [j, j + 1) x [i, i + 1), its centre is
(j + 0.5, i + 0.5), and an image of width w ends at x = w. Nothing here changes a mask in place: every
method returns new masks, which may share memory with the old.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import mmcv
import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from mmdet.config.errors import UserError
from mmdet.ops import mask_targets, rasterize_polygons, roi_align

Polygon = np.ndarray  # flat (2 V,) float64: x0, y0, x1, y1, ...

_AXES = {'horizontal': (True, False), 'vertical': (False, True), 'diagonal': (True, True)}


def _flip_axes(direction: str) -> tuple[bool, bool]:
    if direction not in _AXES:
        raise ValueError(f"flip direction is {direction!r}; use 'horizontal', 'vertical' or 'diagonal'")
    return _AXES[direction]


def _positions(index, length: int) -> np.ndarray:
    """Integer positions that an int, slice, list, bool or integer array or tensor selects."""
    if isinstance(index, Tensor):
        index = index.detach().cpu().numpy()
    if isinstance(index, list) and not index:
        index = slice(0)
    return np.atleast_1d(np.arange(length)[index])


class _Masks:
    """What both kinds of masks can do, under the names that mmdetection has for it."""

    def rescale(self, scale: float | tuple[int, int]):
        """Stretch the image by a factor, or to the largest size within two sides, keeping its shape."""
        width, height = mmcv.rescale_size((self.width, self.height), scale)
        return self.resize((height, width))

    def to_ndarray(self) -> np.ndarray:
        """(n, h, w) uint8 of 0 and 1."""
        return self.to_bitmap().masks

    def to_tensor(self, dtype: torch.dtype = torch.uint8, device: torch.device | str = 'cpu') -> Tensor:
        """(n, h, w) of 0 and 1."""
        return torch.tensor(self.to_ndarray(), dtype=dtype, device=device)

    def get_bboxes(self, dst_type: str = 'hbox') -> Tensor:
        """(n, 4) float32 boxes xyxy in pixels, see `boxes`."""
        if dst_type != 'hbox':
            raise UserError(f"get_bboxes(dst_type={dst_type!r}): boxes are upright here, 'hbox'")
        return torch.from_numpy(self.boxes())

    def translate(
        self, out_shape: tuple[int, int], offset: float, direction: str = 'horizontal', border_value: int = 0,
        interpolation: str = 'nearest',
    ):
        """Moved by `offset` pixels, 'horizontal' or 'vertical', on an image of `out_shape` (h, w)."""
        if border_value != 0 or direction not in ('horizontal', 'vertical'):
            raise UserError(f'translate(direction={direction!r}, border_value={border_value}): masks are moved '
                            "'horizontal' or 'vertical', and what comes in is empty")
        shift = [[1, 0, offset if direction == 'horizontal' else 0], [0, 1, offset if direction == 'vertical' else 0]]
        return self.warp(np.array(shift, dtype=np.float64), tuple(out_shape))


def _checked(indices: Tensor | np.ndarray, size: int) -> Tensor:
    if isinstance(indices, tuple) or not isinstance(size, (int, np.integer)):
        raise UserError('crop_and_resize takes (boxes, indices, size) and gives targets (R, size, size); mmdetection '
                        'takes the size, a pair, before the indices')
    return torch.as_tensor(indices)


class PolygonMasks(_Masks):
    """Masks of n instances, each a union of polygons.

    Resizing, flipping, cropping and padding are arithmetic on the vertices: no pixel is touched and nothing
    is rounded, so a mask target is rasterised once, at its own resolution.

    Args:
        polygons: per instance a list of flat (x0, y0, x1, y1, ...) arrays in pixels, three vertices or
            more each; an instance without polygons is an empty mask.
        height, width: size of the image in pixels.

    >>> masks = PolygonMasks([[[1, 1, 5, 1, 5, 4, 1, 4]]], height=6, width=8)
    >>> masks.areas
    array([12.])
    >>> masks.flip('horizontal').boxes()
    array([[3., 1., 7., 4.]], dtype=float32)
    >>> masks.to_bitmap().areas
    array([12.])
    """

    def __init__(self, polygons: Sequence[Sequence], height: int, width: int) -> None:
        self.polygons: list[list[Polygon]] = [
            [np.asarray(p, dtype=np.float64) for p in parts] for parts in polygons
        ]
        self.height = int(height)
        self.width = int(width)

    def __len__(self) -> int:
        return len(self.polygons)

    def __repr__(self) -> str:
        return f'PolygonMasks(n={len(self)}, height={self.height}, width={self.width})'

    def __iter__(self) -> Iterator[list[Polygon]]:
        return iter(self.polygons)

    def __getitem__(self, index) -> PolygonMasks:
        return self._like([self.polygons[i] for i in _positions(index, len(self))])

    @classmethod
    def cat(cls, parts: Sequence[PolygonMasks]) -> PolygonMasks:
        """The instances of several masks of one image, in order."""
        _check_one_size(parts)
        polygons = [instance for part in parts for instance in part.polygons]
        return cls(polygons, parts[0].height, parts[0].width)

    def _like(self, polygons, height: int | None = None, width: int | None = None) -> PolygonMasks:
        new = object.__new__(PolygonMasks)  # the arrays are float64 already
        new.polygons = polygons
        new.height = self.height if height is None else int(height)
        new.width = self.width if width is None else int(width)
        return new

    def resize(self, shape: tuple[int, int]) -> PolygonMasks:
        """Stretch the image to `shape` (h, w)."""
        scale = np.array([shape[1] / self.width, shape[0] / self.height])
        polygons = [[(p.reshape(-1, 2) * scale).ravel() for p in parts] for parts in self.polygons]
        return self._like(polygons, *shape)

    def flip(self, direction: str = 'horizontal') -> PolygonMasks:
        """Mirror along 'horizontal', 'vertical' or 'diagonal' (both)."""
        in_x, in_y = _flip_axes(direction)

        def mirrored(polygon: Polygon) -> Polygon:
            polygon = polygon.copy()
            if in_x:
                polygon[0::2] = self.width - polygon[0::2]
            if in_y:
                polygon[1::2] = self.height - polygon[1::2]
            return polygon

        return self._like([[mirrored(p) for p in parts] for parts in self.polygons])

    def crop(self, window: Sequence[float]) -> PolygonMasks:
        """What is seen through `window` (x1, y1, x2, y2), which becomes the image.

        Polygons are clipped at its border (Sutherland and Hodgman, 1974); the clipped parts of a concave
        polygon stay joined by edges along the border, which enclose no area.
        """
        x1, y1, x2, y2 = _window(window)
        polygons = []
        for parts in self.polygons:
            clipped = [_clip_polygon(p.reshape(-1, 2), x1, y1, x2, y2) for p in parts]
            polygons.append([(p - (x1, y1)).ravel() for p in clipped if len(p) >= 3])
        return self._like(polygons, y2 - y1, x2 - x1)

    def expand(self, height: int, width: int, top: int, left: int) -> PolygonMasks:
        """On a larger image of `height` x `width`, in which this one begins at row `top` and column `left`."""
        polygons = [[(p.reshape(-1, 2) + (left, top)).ravel() for p in parts] for parts in self.polygons]
        return self._like(polygons, height, width)

    def warp(self, matrix: np.ndarray, shape: tuple[int, int]) -> PolygonMasks:
        """Under the affine map `matrix` (2, 3) of points in pixels, on an image of `shape` (h, w)."""
        polygons = [[(p.reshape(-1, 2) @ matrix[:, :2].T + matrix[:, 2]).ravel() for p in parts]
                    for parts in self.polygons]
        return self._like(polygons, *shape).crop((0, 0, shape[1], shape[0]))

    def pad(self, shape: tuple[int, int], value: int = 0) -> PolygonMasks:
        """Extend the image to `shape` (h, w) at its right and bottom; `value` must be 0."""
        if value != 0:
            raise UserError(f'polygons can only be padded with 0, not {value}; set poly2mask=True')
        return self._like(self.polygons, *shape)

    @property
    def areas(self) -> np.ndarray:
        """(n,) float64 areas in square pixels: the sum over an instance's polygons."""
        return np.array([sum(map(_polygon_area, parts)) for parts in self.polygons], dtype=np.float64)

    def boxes(self) -> np.ndarray:
        """(n, 4) float32 x1, y1, x2, y2 around the vertices; zeros for an empty mask."""
        boxes = np.zeros((len(self), 4), dtype=np.float32)
        for box, parts in zip(boxes, self.polygons):
            if parts:
                points = np.concatenate(parts).reshape(-1, 2)
                box[:2], box[2:] = points.min(axis=0), points.max(axis=0)
        return boxes

    def to_bitmap(self) -> BitmapMasks:
        """Rasterise with COCO's rule (mostly: a pixel whose centre is inside)."""
        masks = rasterize_polygons(self.polygons, self.height, self.width).numpy()
        return BitmapMasks(masks, self.height, self.width)

    def crop_and_resize(
        self, boxes: Tensor | np.ndarray, indices: Tensor | np.ndarray, size: int, device: torch.device | None = None
    ) -> Tensor:
        """Mask targets: instance ``indices[r]`` seen through ``boxes[r]``, rasterised at size x size.

        Args:
            boxes: (R, 4) x1, y1, x2, y2 in pixels, any device; from the host's nothing is waited for.
            indices: (R,) int64.
            size: side of a target, cells.
            device: where the result is wanted; by default where `boxes` are.

        Returns:
            (R, size, size) float32 of 0 and 1.
        """
        boxes, indices = torch.as_tensor(boxes), _checked(indices, size)
        return _send(mask_targets(self.polygons, boxes, size, indices), torch.device(device or boxes.device))


class BitmapMasks(_Masks):
    """Masks of n instances as bitmaps.

    Args:
        masks: (n, height, width) array of 0 and 1 (uint8 or bool).
        height, width: size of the image in pixels.
    """

    def __init__(self, masks: np.ndarray, height: int, width: int) -> None:
        masks = np.asarray(masks, dtype=np.uint8).reshape(-1, height, width)
        self.masks = masks
        self.height = int(height)
        self.width = int(width)

    def __len__(self) -> int:
        return len(self.masks)

    def __repr__(self) -> str:
        return f'BitmapMasks(n={len(self)}, height={self.height}, width={self.width})'

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.masks)

    def __getitem__(self, index) -> BitmapMasks:
        return BitmapMasks(self.masks[_positions(index, len(self))], self.height, self.width)

    @classmethod
    def cat(cls, parts: Sequence[BitmapMasks]) -> BitmapMasks:
        """The instances of several masks of one image, in order."""
        _check_one_size(parts)
        return cls(np.concatenate([part.masks for part in parts]), parts[0].height, parts[0].width)

    def resize(self, shape: tuple[int, int]) -> BitmapMasks:
        """Stretch the image to `shape` (h, w); a new pixel takes the value under its centre."""
        height, width = shape
        masks = np.empty((len(self), height, width), dtype=np.uint8)
        for mask, resized in zip(self.masks, masks):
            cv2.resize(mask, (width, height), dst=resized, interpolation=cv2.INTER_NEAREST_EXACT)
        return BitmapMasks(masks, height, width)

    def flip(self, direction: str = 'horizontal') -> BitmapMasks:
        """Mirror along 'horizontal', 'vertical' or 'diagonal' (both)."""
        in_x, in_y = _flip_axes(direction)
        masks = self.masks[:, :: -1 if in_y else 1, :: -1 if in_x else 1]
        return BitmapMasks(np.ascontiguousarray(masks), self.height, self.width)

    def crop(self, window: Sequence[float]) -> BitmapMasks:
        """What is seen through `window` (x1, y1, x2, y2), whole pixels, which becomes the image."""
        x1, y1, x2, y2 = _window(window)
        if x1 < 0 or y1 < 0 or x2 > self.width or y2 > self.height:
            size = (self.width, self.height)
            raise ValueError(f'crop window {(x1, y1, x2, y2)} leaves the image of (w, h) = {size}')
        return BitmapMasks(np.ascontiguousarray(self.masks[:, y1:y2, x1:x2]), y2 - y1, x2 - x1)

    def expand(self, height: int, width: int, top: int, left: int) -> BitmapMasks:
        """On a larger image of `height` x `width`, in which this one begins at row `top` and column `left`."""
        masks = np.zeros((len(self), height, width), dtype=np.uint8)
        masks[:, top : top + self.height, left : left + self.width] = self.masks
        return BitmapMasks(masks, height, width)

    def warp(self, matrix: np.ndarray, shape: tuple[int, int]) -> BitmapMasks:
        """Under the affine map `matrix` (2, 3) of points in pixels, on an image of `shape` (h, w); a new pixel takes
        the value under its centre."""
        masks = [warp_pixels(mask, matrix, shape, interpolation=cv2.INTER_NEAREST) for mask in self.masks]
        return BitmapMasks(np.array(masks, dtype=np.uint8), *shape)

    def pad(self, shape: tuple[int, int], value: int = 0) -> BitmapMasks:
        """Extend the image to `shape` (h, w) with `value` at its right and bottom."""
        masks = np.full((len(self), *shape), value, dtype=np.uint8)
        masks[:, : self.height, : self.width] = self.masks
        return BitmapMasks(masks, *shape)

    @property
    def areas(self) -> np.ndarray:
        """(n,) float64 numbers of pixels."""
        return self.masks.sum(axis=(1, 2), dtype=np.int64).astype(np.float64)

    def boxes(self) -> np.ndarray:
        """(n, 4) float32 x1, y1, x2, y2 around the pixels; zeros for an empty mask."""
        boxes = np.zeros((len(self), 4), dtype=np.float32)
        for box, mask in zip(boxes, self.masks):
            columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
            if len(columns):
                box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        return boxes

    def to_bitmap(self) -> BitmapMasks:
        return self

    def crop_and_resize(
        self, boxes: Tensor | np.ndarray, indices: Tensor | np.ndarray, size: int, device: torch.device | None = None
    ) -> Tensor:
        """Mask targets: instance ``indices[r]`` seen through ``boxes[r]``, averaged by RoIAlign over
        size x size cells and cut at 0.5.

        Args and result as in `PolygonMasks.crop_and_resize`.
        """
        boxes, indices = torch.as_tensor(boxes), _checked(indices, size)
        device = torch.device(device or boxes.device)
        if len(boxes) == 0:
            return torch.zeros(0, size, size, device=device)
        used, indices = np.unique(indices.cpu().numpy(), return_inverse=True)
        masks = _send(torch.from_numpy(self.masks[used]), device)[:, None].float()
        rois = torch.cat([_send(torch.from_numpy(indices), device)[:, None], _send(boxes, device)], dim=1).float()
        return (roi_align(masks, rois, size, 1.0, 0, aligned=True)[:, 0] >= 0.5).float()


def warp_pixels(
    pixels: np.ndarray, matrix: np.ndarray, shape: tuple[int, int], value: Sequence[float] = (0,),
    interpolation: int = cv2.INTER_LINEAR,
) -> np.ndarray:
    """An image or mask under the affine map `matrix` (2, 3) of points in pixels, on `shape` (h, w) filled with `value`.

    OpenCV counts from the centre of the first pixel, points are counted from its corner.
    """
    matrix = matrix.astype(np.float64)
    matrix[:, 2] += matrix[:, :2].sum(axis=1) / 2 - 0.5
    return cv2.warpAffine(pixels, matrix, (shape[1], shape[0]), flags=interpolation, borderValue=tuple(value))


def _send(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`. A GPU's host does not wait for it: pinned memory is copied later, other memory at once."""
    if tensor.device.type == 'cpu' and device.type == 'cuda':
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def masks_from_coco(
    segmentations: Sequence, height: int, width: int, bitmap: bool = False
) -> PolygonMasks | BitmapMasks:
    """Masks of one image from COCO's ``segmentation`` entries.

    Args:
        segmentations: per instance a list of flat polygons, an RLE dict (counts compressed or as a
            list), or None for an instance without a mask. Polygons of fewer than three vertices are dropped.
        height, width: size of the image in pixels.
        bitmap: give bitmaps whatever the entries are.

    Raises:
        ValueError: an entry of another form, a coordinate that is not finite, an RLE of another size.

    Returns:
        `PolygonMasks` when every entry is a list of polygons or None, `BitmapMasks` otherwise.
    """
    entries = [s if s is None or isinstance(s, dict) else _whole_polygons(s) for s in segmentations]
    if not bitmap and not any(isinstance(s, dict) for s in entries):
        return PolygonMasks([s or [] for s in entries], height, width)
    polygons = [[] if isinstance(s, dict) else s or [] for s in entries]
    masks = rasterize_polygons(polygons, height, width).numpy()
    for mask, entry in zip(masks, entries):
        if isinstance(entry, dict):
            mask[...] = _decode_rle(entry, height, width)
    return BitmapMasks(masks, height, width)


def outline(rle: dict, height: int, width: int) -> list[Polygon]:
    """Polygons around the pixels of an RLE mask, to about half a pixel; holes are filled."""
    contours, _ = cv2.findContours(_decode_rle(rle, height, width), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [contour.ravel() + 0.5 for contour in contours if len(contour) >= 3]


def _whole_polygons(polygons: Sequence) -> list[Polygon]:
    if isinstance(polygons, list) and polygons and all(type(value) in (int, float) for value in polygons):
        polygons = [polygons]  # one polygon, as VIA writes it
    try:
        arrays = [np.asarray(p, dtype=np.float64) for p in polygons]
        known = all(p.ndim == 1 and np.isfinite(p).all() for p in arrays)
        known = known and not any(bool in map(type, p) for p in polygons)
    except (TypeError, ValueError, OverflowError):
        known = False
    if not known:
        text = str(polygons)
        raise UserError('a segmentation is a list of polygons [[x1, y1, x2, y2, ...], ...] or an RLE dict, not '
                         f'{text[:80]}{"..." * (len(text) > 80)}')
    return [p for p in arrays if p.size >= 6 and p.size % 2 == 0]


def rle_from_coco(segmentation: list | dict | None, height: int, width: int) -> dict | None:
    """COCO's ``segmentation`` as one compressed RLE; None where no polygon of three vertices is in it.

    Raises:
        ValueError: an entry that `masks_from_coco` would refuse.
    """
    if isinstance(segmentation, dict):
        rle = compressed_rle(segmentation, height, width)
        rle_areas([rle])
        return rle
    polygons = _whole_polygons(segmentation or [])
    if not polygons:
        return None
    if max(np.abs(p).max() for p in polygons) < 1e6:
        return coco_mask.merge(coco_mask.frPyObjects([p.tolist() for p in polygons], height, width))
    # pycocotools stores each pixel along an edge: a vertex far away would take all memory
    return coco_mask.encode(np.asfortranarray(rasterize_polygons([polygons], height, width)[0].numpy()))


def mask_bounds(segmentation: list | dict, height: int, width: int) -> tuple[float, float, float, float] | None:
    """x1, y1, x2, y2 around COCO's ``segmentation``, as it has them; None where no polygon of three vertices is in it.

    Raises:
        ValueError: an entry that `masks_from_coco` would refuse.
    """
    if isinstance(segmentation, dict):
        x, y, w, h = coco_mask.toBbox(rle_from_coco(segmentation, height, width)).tolist()
        return x, y, x + w, y + h
    polygons = _whole_polygons(segmentation)
    if not polygons:
        return None
    points = np.concatenate(polygons).reshape(-1, 2)
    return (*points.min(axis=0).tolist(), *points.max(axis=0).tolist())


def encode_bitmap(bitmap: Tensor | np.ndarray) -> dict:
    """A bitmap (h, w), of 0 and something else, as a compressed RLE.

    Raises:
        ValueError: numbers between, such as probabilities.
    """
    pixels = torch.as_tensor(bitmap).detach().cpu().numpy()
    if pixels.dtype.kind == 'f' and not np.isin(pixels, (0, 1)).all():
        span = f'{pixels.min():.3g} to {pixels.max():.3g}'
        raise ValueError(f'a mask is a bitmap of 0 and 1, not of numbers from {span}; '
                         'compare probabilities with a threshold (> 0.5)')
    return coco_mask.encode(np.asfortranarray(pixels != 0).astype(np.uint8))


def compressed_rle(rle: dict, height: int, width: int) -> dict:
    """An RLE mask of any form as dict(size=[h, w], counts=bytes). Compressed counts are not read: see `rle_areas`.

    Raises:
        ValueError: no RLE, one of another size, or listed counts that do not fit it.
    """
    size, counts = rle.get('size'), rle.get('counts')
    if type(counts) is bytes and size == [height, width]:
        return rle  # as models predict them
    if isinstance(counts, list):  # some tools write 12.0
        counts = [int(c) if type(c) is float and c.is_integer() else c for c in counts]
    known = isinstance(counts, (str, bytes)) or isinstance(counts, list) and all(type(c) is int for c in counts)
    if not known or not isinstance(size, (list, tuple)):
        text = str(rle)
        raise UserError('an RLE mask is dict(size=[h, w], counts=whole numbers or a text), not '
                         f'{text[:80]}{"..." * (len(text) > 80)}')
    if tuple(size) != (height, width):
        raise ValueError(f'RLE mask is of size {tuple(size)} (h, w), its image {(height, width)}')
    size = [height, width]
    if isinstance(counts, list):
        _check_counts(min(counts, default=0), sum(counts), height * width)
        return coco_mask.frPyObjects(dict(size=size, counts=counts), height, width)
    return dict(size=size, counts=counts.encode() if isinstance(counts, str) else counts)


def rle_areas(rles: Sequence[dict]) -> np.ndarray:
    """Areas in pixels, (n,) int64, of compressed RLEs. All their counts are read and checked on the way: pycocotools
    hangs on damaged ones, or shows memory that was never written.

    Raises:
        ValueError: counts that are cut off, negative or do not sum to the number of pixels.
    """
    if not rles:
        return np.zeros(0, dtype=np.int64)
    # COCO's format: a number is groups of five bits, the lowest first, each plus 48. In a group 32 says that another
    # follows; in the last, 16 says that the number is negative.
    groups = np.frombuffer(b''.join([rle['counts'] for rle in rles]), dtype=np.uint8) - np.uint8(48)
    mask_stops = np.cumsum([len(rle['counts']) for rle in rles])
    stops = np.flatnonzero(groups < 32) + 1  # of numbers
    sizes = np.diff(stops, prepend=0)
    last = np.searchsorted(stops, mask_stops)  # each mask's last number
    known = (groups < 64).all() and sizes.max(initial=0) <= 8 and np.diff(mask_stops, prepend=0).all()
    if not known or last[-1] == len(stops) or (stops[last] != mask_stops).any():
        raise ValueError("the counts of an RLE mask are empty, cut off or not COCO's compressed counts")
    numbers = -((groups[stops - 1] & 16).astype(np.int64) << 5 * sizes - 4)
    for k in range(sizes.max()):
        longer = np.flatnonzero(sizes > k) if k else slice(None)
        numbers[longer] += (groups[stops[longer] - sizes[longer] + k] & 31).astype(np.int64) << 5 * k
    # From its mask's fourth on, a number is the difference from the last but one, so counts are sums of every other
    # number. They are summed over all masks at once; `before` is what does not belong to the mask.
    first = np.concatenate([[0], last[:-1] + 1])
    lengths = np.diff(first, append=len(numbers))
    is_object = (np.arange(len(numbers)) - np.repeat(first, lengths)) & 1
    sums = np.empty_like(numbers)
    sums[::2], sums[1::2] = np.cumsum(numbers[::2]), np.cumsum(numbers[1::2])
    before = np.where(is_object, np.repeat(np.where(first > 0, sums[first - 1], 0), lengths),
                      np.repeat(sums[first], lengths))
    counts = sums - before
    counts[first] = numbers[first]
    least, totals = np.minimum.reduceat(counts, first), np.add.reduceat(counts, first)
    pixels = np.array([rle['size'][0] * rle['size'][1] for rle in rles])
    for k in np.flatnonzero((least < 0) | (totals != pixels))[:1]:
        _check_counts(least[k], totals[k], pixels[k])
    return np.add.reduceat(counts * is_object, first)


def _check_counts(least: int, total: int, pixels: int) -> None:
    if least < 0 or total != pixels:
        negative = ' with negative ones among them' if least < 0 else ''
        raise ValueError(f'the counts of an RLE mask sum to {total}{negative}, its image has {pixels} pixels')


def _decode_rle(rle: dict, height: int, width: int) -> np.ndarray:
    rle = compressed_rle(rle, height, width)
    rle_areas([rle])
    return coco_mask.decode(rle)


def _check_one_size(parts: Sequence) -> None:
    sizes = {(part.height, part.width) for part in parts}
    if len(sizes) != 1:
        raise ValueError(f'masks of one image are needed, got sizes (h, w) {sorted(sizes)}')


def _window(window: Sequence[float]) -> tuple[int, int, int, int]:
    x1, y1, x2, y2 = (int(v) for v in window)
    if x2 <= x1 or y2 <= y1:
        raise ValueError(f'crop window {(x1, y1, x2, y2)} is empty; x1 < x2 and y1 < y2 are needed')
    return x1, y1, x2, y2


def _polygon_area(polygon: Polygon) -> float:
    """Shoelace formula."""
    x, y = polygon[0::2], polygon[1::2]
    return 0.5 * abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))


def _clip_polygon(points: np.ndarray, x1: float, y1: float, x2: float, y2: float) -> np.ndarray:
    """Clip (V, 2) vertices at the four sides of a window; returns (V', 2), V' = 0 when nothing is inside."""
    low, high = points.min(axis=0), points.max(axis=0)
    if low[0] >= x1 and low[1] >= y1 and high[0] <= x2 and high[1] <= y2:
        return points
    if low[0] >= x2 or low[1] >= y2 or high[0] <= x1 or high[1] <= y1:
        return points[:0]
    for axis, limit, sign in ((0, x1, 1), (0, x2, -1), (1, y1, 1), (1, y2, -1)):
        depth = sign * (points[:, axis] - limit)  # > 0 inside
        following, depth_following = np.roll(points, -1, axis=0), np.roll(depth, -1)
        inside = depth >= 0
        if inside.all():
            continue
        crosses = inside != (depth_following >= 0)
        share = np.divide(depth, depth - depth_following, out=np.zeros_like(depth), where=crosses)
        crossing = points + share[:, None] * (following - points)
        crossing[:, axis] = limit
        # each vertex that is inside, followed by the point where its edge leaves or enters
        points = np.stack([points, crossing], axis=1)[np.stack([inside, crosses], axis=1)]
        if len(points) < 3:
            return points[:0]
    return points
