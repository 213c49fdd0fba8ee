"""Predicted masks as run lengths that answer like an array of bitmaps when they are asked for pixels.

D detections of an image of H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from mmengine.structures import InstanceData
from pycocotools import mask as coco_mask
from torch.utils._pytree import tree_map

from mmdet.structures.masks import compressed_rle, encode_bitmap


class _Pixels:
    """What a tensor is asked for by code that draws or counts masks; everything stays on the CPU."""

    def cpu(self):
        return self

    def detach(self):
        return self

    def to(self, *_, **__):  # a data sample goes to a device and comes back; run lengths have nothing to do there
        return self

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self.numpy() if dtype is None else self.numpy().astype(dtype)

    def __getattr__(self, name: str):
        """Of a tensor of bitmaps, `sum`, `any`, `float`, `dtype`, `nonzero`, ..., of an array `astype`, ...: it is
        decoded to be asked."""
        if not name.startswith('_'):  # copying and pickling ask, too
            for kind, pixels in ((torch.Tensor, self.to_tensor), (np.ndarray, self.numpy)):
                if hasattr(kind, name):
                    return getattr(pixels(), name)
        raise AttributeError(f'{type(self).__name__!r} object has no attribute {name!r}')

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        """``torch.stack(masks)`` and what else takes tensors."""
        args, kwargs = tree_map(_decoded, (args, kwargs or {}))
        return function(*args, **kwargs)

    def to_tensor(self, dtype: torch.dtype = torch.bool, device: torch.device | str = 'cpu') -> torch.Tensor:
        return torch.from_numpy(self.numpy()).to(device, dtype)


def _decoded(value: Any) -> Any:
    return value.to_tensor() if isinstance(value, _Pixels) else value


def _operator(name: str):
    def operate(self, *others):
        return getattr(self.to_tensor(), name)(*map(_decoded, others))

    operate.__name__ = name
    return operate


# Of lists and dicts, `|` and `*` would be something else, and the others nothing.
for _name in ('and', 'rand', 'or', 'ror', 'xor', 'rxor', 'invert', 'mul', 'rmul', 'lt', 'le', 'gt', 'ge'):
    setattr(_Pixels, f'__{_name}__', _operator(f'__{_name}__'))


class RLEMask(_Pixels, dict):
    """One mask: COCO's dict(size=[H, W], counts=bytes).

    >>> mask = RLEMask(coco_mask.encode(np.asfortranarray(np.eye(2, dtype=np.uint8))))
    >>> mask.shape, mask.numpy().tolist()
    ((2, 2), [[True, False], [False, True]])
    """

    @property
    def shape(self) -> tuple[int, int]:
        return tuple(self['size'])

    def __getitem__(self, index):
        return super().__getitem__(index) if isinstance(index, str) else self.to_tensor()[index]

    def __eq__(self, other):
        return super().__eq__(other) if isinstance(other, dict) else self.to_tensor() == other

    def numpy(self) -> np.ndarray:
        """(H, W) bool."""
        return coco_mask.decode(self).astype(bool)


class RLEMasks(_Pixels, list):
    """The masks of D detections: a list of `RLEMask` that is indexed as an array is.

    >>> masks = RLEMasks([coco_mask.encode(np.zeros((2, 3), np.uint8, order='F'))] * 4, 2, 3)
    >>> masks.shape, masks[np.array([True, False, False, True])].numpy().shape, masks[:0].numpy().shape
    ((4, 2, 3), (2, 2, 3), (0, 2, 3))
    """

    def __init__(self, rles: Iterable[dict], height: int, width: int) -> None:
        super().__init__(map(RLEMask, rles))
        self.height, self.width = height, width

    @classmethod
    def of(cls, masks: Iterable, height: int, width: int) -> RLEMasks:
        """Masks of any form: RLE dicts, or bitmaps (H, W).

        Raises:
            ValueError: damaged ones, of another size, or probabilities.
        """
        if isinstance(masks, RLEMasks):
            return masks
        rles = (mask if isinstance(mask, dict) else encode_bitmap(mask) for mask in masks)
        return cls([compressed_rle(rle, height, width) for rle in rles], height, width)

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self), self.height, self.width

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self._like(super().__getitem__(index))
        if index is None or index is Ellipsis or isinstance(index, tuple):
            return self.to_tensor()[index]
        if isinstance(index, (list, torch.Tensor)):
            index = np.asarray(index, dtype=None if len(index) else int)
        positions = np.arange(len(self))[index]
        if positions.ndim == 0:
            return super().__getitem__(int(positions))
        return self._like(super(RLEMasks, self).__getitem__(i) for i in positions.tolist())

    def __eq__(self, other):
        return super().__eq__(other) if isinstance(other, list) else self.to_tensor() == other

    def __add__(self, others: list) -> RLEMasks:
        return self._like([*self, *others])

    def __reduce__(self):
        return RLEMasks, (list(self), self.height, self.width)

    def _like(self, rles: Iterable[dict]) -> RLEMasks:
        return RLEMasks(rles, self.height, self.width)

    def flip(self, direction: str) -> RLEMasks:
        """The masks on the mirrored image; direction 'horizontal', 'vertical' or 'diagonal'."""
        axes = dict(horizontal=1, vertical=0, diagonal=(0, 1))[direction]
        return self._like(coco_mask.encode(np.asfortranarray(np.flip(coco_mask.decode(m), axes))) for m in self)

    def numpy(self) -> np.ndarray:
        """(D, H, W) bool."""
        if not self:
            return np.zeros(self.shape, dtype=bool)
        return coco_mask.decode(list(self)).transpose(2, 0, 1).astype(bool)


class DetectedInstances(InstanceData):
    """Detections of an image, as arrays with bitmaps where they are asked for."""

    def numpy(self) -> DetectedInstances:
        arrays = super().numpy()
        if isinstance(self.get('masks'), RLEMasks):
            arrays.masks = self.masks.numpy()
        return arrays
