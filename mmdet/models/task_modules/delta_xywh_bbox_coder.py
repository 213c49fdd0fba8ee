"""Boxes as offsets from reference boxes (anchors or proposals).

N boxes, xyxy in pixels; (...) any leading axes.
"""

import math

import torch
from torch import Tensor

from mmdet.registry import TASK_UTILS
from mmdet.structures.boxes import clip_boxes


@TASK_UTILS.register_module()
class DeltaXYWHBBoxCoder:
    """Deltas (dx, dy, dw, dh): centre shift over the reference's size, log of the size ratio (R-CNN, appendix C).

    Args:
        target_means, target_stds: deltas are normalised by them.
        clip_border: clip decoded boxes into the image.
        wh_ratio_clip: |dw| and |dh| are at most |log(wh_ratio_clip)|, which keeps exp() finite.
        offset: 1 for inclusive corners (a box from x1 to x2 is x2 - x1 + 1 wide).
    """

    def __init__(
        self,
        target_means: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0),
        target_stds: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0),
        clip_border: bool = True,
        wh_ratio_clip: float = 16 / 1000,
        offset: float = 0.0,
    ):
        self.means = list(target_means)
        self.stds = list(target_stds)
        self._cache: dict = {}
        self.clip_border = clip_border
        self.max_log = abs(math.log(wh_ratio_clip))
        self.offset = offset

    def encode(self, boxes: Tensor, gt_boxes: Tensor) -> Tensor:
        """Deltas (N, 4) that lead from `boxes` (N, 4) to `gt_boxes` (N, 4)."""
        centre, size = self._centre_size(boxes.float())
        gt_centre, gt_size = self._centre_size(gt_boxes.float())
        deltas = torch.cat([(gt_centre - centre) / size, (gt_size / size).log()], dim=-1)
        means, stds = self._means_stds(deltas)
        return (deltas - means) / stds

    def decode(self, boxes: Tensor, deltas: Tensor, image_shape: tuple[int, int] | None = None) -> Tensor:
        """Boxes that `deltas` (..., 4) lead to from `boxes` (..., 4), clipped to `image_shape` (h, w) if given."""
        centre, size = self._centre_size(boxes)
        means, stds = self._means_stds(deltas)
        deltas = torch.addcmul(means, deltas, stds)
        new_centre = centre + deltas[..., :2] * size
        new_size = size * deltas[..., 2:].clamp(-self.max_log, self.max_log).exp()
        half = 0.5 * (new_size - self.offset if self.offset else new_size)
        decoded = torch.cat([new_centre - half, new_centre + half], dim=-1)
        return decoded if image_shape is None else self.clip(decoded, image_shape)

    def compared(self, boxes: Tensor, deltas: Tensor, gt_boxes: Tensor, decoded: bool) -> tuple[Tensor, Tensor]:
        """What a box loss compares, prediction and target (N, 4): boxes in pixels if `decoded`, deltas otherwise."""
        return (self.decode(boxes, deltas.float()), gt_boxes) if decoded else (deltas, self.encode(boxes, gt_boxes))

    def clip(self, boxes: Tensor, image_shape: tuple[int, int]) -> Tensor:
        """Boxes (..., 4) clipped to an image of `image_shape` (h, w), if `clip_border`."""
        return clip_boxes(boxes, image_shape, self.offset) if self.clip_border else boxes

    def sides(self, boxes: Tensor) -> Tensor:
        """Width and height (..., 2) of boxes (..., 4)."""
        sides = boxes[..., 2:] - boxes[..., :2]
        return sides + self.offset if self.offset else sides

    def _centre_size(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        return 0.5 * (boxes[..., :2] + boxes[..., 2:]), self.sides(boxes)

    def _means_stds(self, deltas: Tensor) -> list[Tensor]:
        """On the deltas' device, made there once: each copy to a GPU makes the host wait."""
        key = (deltas.device, deltas.dtype)
        if key not in self._cache:
            with torch.inference_mode(False):  # also what inference made first may take part in training
                self._cache[key] = [deltas.new_tensor(values) for values in (self.means, self.stds)]
        return self._cache[key]
