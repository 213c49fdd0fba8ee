"""What a detector finds on one image, and which of the candidates remain.

B candidates and D detections of an image; boxes are xyxy in pixels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mmdet.ops import apply_nms
from mmdet.structures import DetectedInstances


class Detections(NamedTuple):
    """Detections of one image: boxes (D, 4) in pixels of the original image, scores (D,) falling, labels (D,)."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def to_instances(self) -> DetectedInstances:
        """As a data sample holds them."""
        return DetectedInstances(bboxes=self.boxes, scores=self.scores, labels=self.labels)


def keep_best(boxes: Tensor, scores: Tensor, groups: Tensor, cfg: dict) -> tuple[Tensor, Tensor]:
    """Which of B candidates remain, best first, as indices (D,), and their scores (D,).

    NMS (``cfg['nms']``) acts within each group (B,), a class or a level; the best ``cfg['max_per_img']`` remain.
    """
    keep, kept_scores = apply_nms(boxes, scores, groups, cfg['nms'])
    count = number_kept(cfg['max_per_img'], keep.shape[0])
    return keep[:count], kept_scores[:count]


def number_kept(limit: int, count: int) -> int:
    """How many of `count` to keep for ``nms_pre`` or ``max_per_img``: all where `limit` is 0 or negative."""
    return torch.sym_min(limit, count) if limit > 0 else count
