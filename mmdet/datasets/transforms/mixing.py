"""Transforms that join several images; they stand in the pipeline of a `MultiImageMixDataset`.

Such a transform has ``get_indexes(dataset)``, which draws the images that it wants; it finds them, loaded, in
``mix_results``. Where it wants none, it leaves the image alone.
"""

from __future__ import annotations

from collections.abc import Sized

import numpy as np
from mmcv.transforms import BaseTransform

from mmdet.config.errors import UserError
from mmdet.datasets.transforms.crop import cut
from mmdet.datasets.transforms.objects import drop_outside, join_objects, keep_objects, refuse_proposals
from mmdet.datasets.transforms.resize import Resize
from mmdet.registry import TRANSFORMS
from mmdet.structures import BitmapMasks


def _others(results: dict, step: BaseTransform) -> list[dict]:
    if 'mix_results' not in results:
        raise UserError(f'{type(step).__name__} needs other images: put it into the pipeline of a MultiImageMixDataset')
    refuse_proposals(results, step)
    return results.pop('mix_results')


def _place(results: dict, shape: tuple[int, int], left: int, top: int) -> None:
    """Let boxes and masks be those on an image of `shape` (h, w) that has this one at column `left` and row `top`."""
    results['gt_bboxes'] = results['gt_bboxes'] + np.array([left, top, left, top], dtype=np.float32)
    if 'gt_masks' in results:
        results['gt_masks'] = results['gt_masks'].expand(*shape, top, left)


@TRANSFORMS.register_module()
class Mosaic(BaseTransform):
    """Four images around a random centre, on an image of twice `img_scale` (Bochkovskiy et al., arXiv 2004.10934).

    Each image is resized to fit into `img_scale` with its aspect ratio, and what reaches over the border is cut off.
    The pipeline's own image is at the top left.

    Args:
        img_scale: (w, h) in pixels.
        center_ratio_range: the centre is between these two times `img_scale`, in x and in y.
        bbox_clip_border: clip boxes to the new image.
        pad_val: value of what no image covers, 0 to 255.
        prob: chance to do it.
    """

    changes_geometry = True

    def __init__(
        self,
        img_scale: tuple[int, int] = (640, 640),
        center_ratio_range: tuple[float, float] = (0.5, 1.5),
        bbox_clip_border: bool = True,
        pad_val: float = 114.0,
        prob: float = 1.0,
    ) -> None:
        if not 0 <= center_ratio_range[0] <= center_ratio_range[1] <= 2:
            raise UserError(f'Mosaic: center_ratio_range={center_ratio_range} must be (smallest, largest), 0 to 2')
        self.img_scale = img_scale
        self.center_ratio_range = center_ratio_range
        self.bbox_clip_border = bbox_clip_border
        self.pad_val = pad_val
        self.prob = prob
        self.resize = Resize(scale=img_scale, clip_object_border=False)

    def get_indexes(self, dataset: Sized) -> list[int]:
        return np.random.randint(len(dataset), size=3).tolist() if np.random.uniform() < self.prob else []

    def transform(self, results: dict) -> dict:
        others = _others(results, self)
        if not others:
            return results
        width, height = (2 * side for side in self.img_scale)
        x, y = (int(np.clip(np.random.uniform(*self.center_ratio_range) * side, 1, 2 * side - 1))
                for side in self.img_scale)
        tiles = [results, *others]
        mosaic = np.full((height, width, *results['img'].shape[2:]), self.pad_val, dtype=results['img'].dtype)
        for i, tile in enumerate(tiles):
            self._fit(tile)
            tile_height, tile_width = tile['img_shape']
            left, top = (x if i % 2 else x - tile_width), (y if i >= 2 else y - tile_height)
            cut(tile, (max(-left, 0), max(-top, 0), min(tile_width, width - left), min(tile_height, height - top)))
            left, top = max(left, 0), max(top, 0)
            mosaic[top : top + tile['img_shape'][0], left : left + tile['img_shape'][1]] = tile['img']
            _place(tile, (height, width), left, top)
        join_objects(results, tiles)
        results['img'], results['img_shape'] = mosaic, (height, width)
        drop_outside(results, self.bbox_clip_border)
        return results

    def _fit(self, tile: dict) -> None:
        height, width = tile['img'].shape[:2]
        factor = min(self.img_scale[0] / width, self.img_scale[1] / height)
        self.resize.resize(tile, (int(width * factor + 0.5), int(height * factor + 0.5)))


@TRANSFORMS.register_module()
class CopyPaste(BaseTransform):
    """Objects of another image pasted at their places (Ghiasi et al., CVPR 2021, arXiv 2012.07177).

    The other image is cut or padded at its right and bottom where it is of another size. Ignored objects are not
    pasted. Of an object under the pasted ones box and mask become those of what is still seen; one of which too little
    is seen is dropped. Masks become bitmaps.

    Args:
        max_num_pasted: the largest number of objects to paste.
        bbox_occluded_thr: keep an object none of whose box's sides moves by more than this, pixels,
        mask_occluded_thr: or of which more than this is seen, square pixels.
        selected: paste a random number of random objects; False pastes all.
        paste_by_box: paste whole boxes, for data without masks.
    """

    changes_geometry = True

    def __init__(
        self,
        max_num_pasted: int = 100,
        bbox_occluded_thr: float = 10,
        mask_occluded_thr: float = 300,
        selected: bool = True,
        paste_by_box: bool = False,
    ) -> None:
        self.max_num_pasted = max_num_pasted
        self.bbox_occluded_thr = bbox_occluded_thr
        self.mask_occluded_thr = mask_occluded_thr
        self.selected = selected
        self.paste_by_box = paste_by_box

    def get_indexes(self, dataset: Sized) -> list[int]:
        return [int(np.random.randint(len(dataset)))]

    def transform(self, results: dict) -> dict:
        (source,) = _others(results, self)
        if not self.paste_by_box and 'gt_masks' not in results:
            raise UserError('CopyPaste needs masks (with_mask=True of LoadAnnotations) or paste_by_box=True')
        self._select(source)
        self._fit(source, results['img'].shape)
        pasted = self._shapes(source).any(axis=0)
        results['img'] = np.where(pasted[..., None], source['img'], results['img'])
        self._occlude(results, pasted)
        join_objects(results, [results, source])
        return results

    def _select(self, source: dict) -> None:
        candidates = np.flatnonzero(~source['gt_ignore_flags'])
        if self.selected:
            count = np.random.randint(min(len(candidates), self.max_num_pasted) + 1)
            candidates = np.sort(np.random.choice(candidates, count, replace=False))
        keep_objects(source, candidates[: self.max_num_pasted])

    @staticmethod
    def _fit(source: dict, shape: tuple[int, ...]) -> None:
        """Cut or pad the source to `shape` (h, w, channels)."""
        height, width = (min(sides) for sides in zip(source['img'].shape[:2], shape[:2]))
        cut(source, (0, 0, width, height))
        img = np.zeros(shape, dtype=source['img'].dtype)
        img[:height, :width] = source['img']
        source['img'] = img
        drop_outside(source, clip=True)
        _place(source, shape[:2], 0, 0)

    def _shapes(self, results: dict) -> np.ndarray:
        """(G, h, w) bool: the pixels of each object."""
        if not self.paste_by_box:
            return results['gt_masks'].to_ndarray().astype(bool)
        shapes = np.zeros((len(results['gt_bboxes']), *results['img'].shape[:2]), dtype=bool)
        for shape, (x1, y1, x2, y2) in zip(shapes, results['gt_bboxes'].round().astype(int).clip(0)):
            shape[y1:y2, x1:x2] = True
        return shapes

    def _occlude(self, results: dict, pasted: np.ndarray) -> None:
        """Take the pixels `pasted` (h, w) from the objects, and drop those of which too little is left."""
        shapes = self._shapes(results)
        touched = (shapes & pasted).any(axis=(1, 2)) & ~results['gt_ignore_flags']
        seen = BitmapMasks(shapes & ~pasted, *pasted.shape)
        moved = np.abs(seen.boxes() - results['gt_bboxes']).max(axis=1, initial=0)
        enough = (seen.areas > 0) & (moved <= self.bbox_occluded_thr) | (seen.areas > self.mask_occluded_thr)
        results['gt_bboxes'] = np.where(touched[:, None], seen.boxes(), results['gt_bboxes'])
        if 'gt_masks' in results:
            masks = results['gt_masks'].to_ndarray() * ~pasted
            results['gt_masks'] = BitmapMasks(masks, *pasted.shape)
        keep_objects(results, ~touched | enough)
