"""Mirroring."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from mmcv.transforms import BaseTransform

from mmdet.config.errors import UserError
from mmdet.config.overrides import refuse_overrides
from mmdet.datasets.transforms.objects import BOXES
from mmdet.registry import TRANSFORMS


@TRANSFORMS.register_module()
@refuse_overrides(
    'extend/transform.md', _flip_bbox='_flip', _flip_on_direction='transform', _record_homography_matrix='_flip',
    _flip_keypoints='_flip', _flip_seg_map='_flip',
)  # fmt: skip
class RandomFlip(BaseTransform):
    """Mirror the image, its boxes and masks.

    Args:
        prob: chance of a flip; with a list of directions, shared equally among them. A list gives the chance
            of each direction.
        direction: 'horizontal', 'vertical', 'diagonal', or a list of them.
    """

    changes_geometry = True

    def __init__(
        self,
        prob: float | Sequence[float] | None = None,
        direction: str | Sequence[str] = 'horizontal',
    ) -> None:
        self.directions = [direction] if isinstance(direction, str) else list(direction)
        for name in self.directions:
            if name not in ('horizontal', 'vertical', 'diagonal'):
                raise UserError(f"direction={name!r}; use 'horizontal', 'vertical' or 'diagonal'")
        if prob is None:
            raise UserError('RandomFlip needs prob, the chance of a flip (0 to 1)')
        single = isinstance(prob, (int, float))
        self.probs = [prob / len(self.directions)] * len(self.directions) if single else list(prob)
        if len(self.probs) != len(self.directions) or min(self.probs) < 0 or sum(self.probs) > 1 + 1e-6:
            raise UserError(f'prob={prob} does not give each of {self.directions} a chance (sum 0 to 1)')

    def transform(self, results: dict) -> dict:
        results['flip_direction'] = self._choose_direction()
        results['flip'] = results['flip_direction'] is not None
        if results['flip']:
            self._flip(results)
        return results

    def _choose_direction(self) -> str | None:
        index = int(np.searchsorted(np.cumsum(self.probs), np.random.rand(), side='right'))
        return self.directions[index] if index < len(self.directions) else None

    def _flip(self, results: dict) -> None:
        direction = results['flip_direction']
        results['img'] = cv2.flip(results['img'], dict(horizontal=1, vertical=0, diagonal=-1)[direction])
        height, width = results['img'].shape[:2]
        for key in BOXES & results.keys():
            boxes = results[key].copy()
            if direction != 'vertical':
                boxes[:, 0::2] = width - boxes[:, 2::-2]
            if direction != 'horizontal':
                boxes[:, 1::2] = height - boxes[:, 3::-2]
            results[key] = boxes
        if 'gt_masks' in results:
            results['gt_masks'] = results['gt_masks'].flip(direction)
