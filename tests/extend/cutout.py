"""Cutout (DeVries and Taylor 2017) for a pipeline."""

import numpy as np
from mmcv.transforms import BaseTransform

from mmdet.registry import TRANSFORMS


@TRANSFORMS.register_module()
class Cutout(BaseTransform):
    """Paint a few rectangles of an image in its mean colour; boxes and masks stay as they are.

    Args:
        count: rectangles.
        size: sides as a share of the image's, drawn between these two.
    """

    def __init__(self, count: int = 2, size: tuple[float, float] = (0.05, 0.2)):
        self.count, self.size = count, size

    def transform(self, results: dict) -> dict:
        image = results['img']  # (h, w, 3) uint8 BGR
        shape = np.array(image.shape[:2])
        colour = image.mean((0, 1))
        for _ in range(self.count):
            sides = (np.random.uniform(*self.size, 2) * shape).astype(int) + 1
            top, left = np.random.randint(0, shape - sides + 1)
            image[top : top + sides[0], left : left + sides[1]] = colour
        return results
