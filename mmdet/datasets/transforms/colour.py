"""Changes of colour: no pixel moves."""

from __future__ import annotations

import cv2
import numpy as np
from mmcv.transforms import BaseTransform

from mmdet.config.errors import UserError
from mmdet.registry import TRANSFORMS


@TRANSFORMS.register_module()
class PhotoMetricDistortion(BaseTransform):
    """SSD's changes of colour: brightness, contrast, saturation, hue and order of channels, each one time in two.

    Contrast comes before saturation and hue or after them, with equal chances (Howard, arXiv 1312.5402; Liu et al.,
    SSD, ECCV 2016). The image keeps its type: uint8 is rounded and cut to 0 to 255 at the end, float32 is not.

    Args:
        brightness_delta: what is added to all values is between minus this and this, of 255.
        contrast_range: smallest and largest factor of all values.
        saturation_range: smallest and largest factor of the saturation.
        hue_delta: the hue is turned by minus this to this, degrees.
    """

    def __init__(
        self,
        brightness_delta: float = 32,
        contrast_range: tuple[float, float] = (0.5, 1.5),
        saturation_range: tuple[float, float] = (0.5, 1.5),
        hue_delta: float = 18,
    ) -> None:
        self.brightness_delta = brightness_delta
        self.contrast_range = contrast_range
        self.saturation_range = saturation_range
        self.hue_delta = hue_delta

    def transform(self, results: dict) -> dict:
        img = results['img']
        if img.ndim != 3 or img.shape[2] != 3:
            raise UserError(f'PhotoMetricDistortion takes images of 3 channels (BGR), this one is {img.shape}')
        contrast_first, *changes = np.random.randint(2, size=6)
        brighten, contrast, saturate, turn, swap = changes
        factor = np.random.uniform(*self.contrast_range) if contrast else 1

        pixels = img.astype(np.float32)
        if brighten:
            pixels += np.random.uniform(-self.brightness_delta, self.brightness_delta)
        if contrast_first:
            pixels *= factor
        hsv = cv2.cvtColor(pixels, cv2.COLOR_BGR2HSV)  # of float32: H in degrees, S 0 to 1, V as the image
        if saturate:
            hsv[..., 1] *= np.random.uniform(*self.saturation_range)
        if turn:
            hsv[..., 0] = (hsv[..., 0] + np.random.uniform(-self.hue_delta, self.hue_delta)) % 360
        pixels = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
        if not contrast_first:
            pixels *= factor
        if swap:
            pixels = pixels[..., np.random.permutation(3)]
        results['img'] = pixels.round().clip(0, 255).astype(np.uint8) if img.dtype == np.uint8 else pixels
        return results
