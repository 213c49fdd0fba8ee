"""How far what two detectors find on the same images lies apart.

D, E    detections of an image by the one and by the other
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.structures import InstanceData
from pycocotools import mask as coco_mask
from torch import nn

from mmdet.apis.images import to_input
from mmdet.structures import DetDataSample
from mmdet.structures.boxes import clip_boxes

BOX, SCORE = 0.5, 1e-3  # pixels of the original image; what counts as equal
# Of the detections: two boxes at the very threshold of NMS are rounded to one side of it or the other.
ALONE = 0.005


@dataclass
class Difference:
    """Over `images` images: the largest of each kind between detections that belong together.

    `alone` are detections without a counterpart of the same class within the tolerances; `masks` is the smallest IoU.
    """

    images: int = 0
    detections: int = 0
    alone: int = 0
    box: float = 0.0
    score: float = 0.0
    masks: float | None = None

    @property
    def agree(self) -> bool:
        """Whether no more than the share `ALONE` has no counterpart."""
        return self.alone <= ALONE * self.detections

    def __str__(self) -> str:
        masks = '' if self.masks is None else f', mask IoU at least {self.masks:.4f}'
        alone = f'; {self.alone} have no counterpart' if self.alone else ''
        apart = f'boxes within {self.box:.2g} pixels, scores within {self.score:.2g}{masks}{alone}'
        return f'{self.images} images, {self.detections} detections: {apart}'

    def add(self, found: DetDataSample, other: DetDataSample, test_cfg: dict) -> None:
        """One image's. What is within the tolerance of ``score_thr``, or of the last of ``max_per_img``, may lack."""
        self.images += 1
        both = found.pred_instances, other.pred_instances
        last = [float(x.scores.min()) for x in both if len(x) == test_cfg.get('max_per_img')]
        edge = max(test_cfg.get('score_thr', 0.0), *last, 0.0) + SCORE
        self.detections += int((found.pred_instances.scores > edge).sum())
        for one, two in (both, both[::-1]):
            self._add(one[one.scores > edge], two, found.ori_shape[:2])

    def _add(self, one: InstanceData, two: InstanceData, size: tuple[int, int]) -> None:
        if not len(one):
            return
        if not len(two):
            self.alone += len(one)
            return
        boxes, others = clip_boxes(one.bboxes, size), clip_boxes(two.bboxes, size)
        box = (boxes[:, None] - others[None]).abs().amax(2)  # (D, E)
        score = (one.scores[:, None] - two.scores[None]).abs()
        apart = torch.maximum(box / BOX, score / SCORE).masked_fill(one.labels[:, None] != two.labels[None], torch.inf)
        apart, partner = apart.min(1)
        together = (apart <= 1).nonzero().squeeze(1)
        self.alone += len(one) - len(together)
        if not len(together):
            return
        partner = partner[together]
        self.box = max(self.box, float(box[together, partner].max()))
        self.score = max(self.score, float(score[together, partner].max()))
        if 'masks' in one:
            ious = [_iou(one.masks[i], two.masks[j]) for i, j in zip(together.tolist(), partner.tolist())]
            self.masks = min([1.0 if self.masks is None else self.masks, *ious])


def _iou(mask: dict, other: dict) -> float:
    if not coco_mask.area(dict(mask)) and not coco_mask.area(dict(other)):
        return 1.0
    return float(coco_mask.iou([dict(mask)], [dict(other)], [0])[0, 0])


def compare(model: nn.Module, exported: nn.Module, images: Iterable[Any]) -> Difference:
    """Run both on the images (see `to_input`), each prepared as the exported file says."""
    from mmengine.dataset import pseudo_collate

    from mmdet.apis.inference import detect, pipeline_of

    pipeline, difference = pipeline_of(exported.cfg), Difference()
    for image in images:
        found = [detect(each, pseudo_collate([pipeline(to_input(image))]))[0] for each in (model, exported)]
        difference.add(*found, model.final_test_cfg or {})
    return difference
