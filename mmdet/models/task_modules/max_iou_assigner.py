"""Which ground truth a box answers for.

B boxes (anchors or proposals) of an image, G ground-truth boxes, I ignored boxes; boxes are xyxy in input pixels.
"""

import torch
from torch import Tensor

from mmdet.config.overrides import refuse_overrides
from mmdet.models.task_modules.protocols import IGNORED, NEGATIVE
from mmdet.registry import TASK_UTILS
from mmdet.structures.boxes import box_iof, box_iou


@TASK_UTILS.register_module()
@refuse_overrides('extend/head.md', assign_wrt_overlaps='assign')
class MaxIoUAssigner:
    """A box is positive for its best ground truth from `pos_iou_thr` on and negative below `neg_iou_thr`.

    Args:
        neg_iou_thr: upper bound, or (lower, upper); boxes between the thresholds are not trained on.
        match_low_quality: every ground truth also takes the boxes of its highest IoU, if that is at least
            `min_pos_iou`: all that tie, or one with ``gt_max_assign_all=False``. One that no box overlaps takes none.
        low_quality_to_best_gt: a box taken so answers for the ground truth of its own highest IoU, as in detectron2,
            and not for the one that took it, as in mmdetection.
        ignore_iof_thr: boxes covered by an ignored box by more than this fraction are not trained on; negative
            turns this off. `ignore_wrt_candidates` False measures the fraction of the ignored box instead.
        offset: 1 for inclusive corners.
    """

    def __init__(
        self,
        pos_iou_thr: float,
        neg_iou_thr: float | tuple[float, float],
        min_pos_iou: float = 0.0,
        match_low_quality: bool = True,
        gt_max_assign_all: bool = True,
        ignore_iof_thr: float = -1,
        ignore_wrt_candidates: bool = True,
        offset: float = 0.0,
        low_quality_to_best_gt: bool = False,
    ):
        self.pos_iou_thr = pos_iou_thr
        self.neg_range = tuple(neg_iou_thr) if isinstance(neg_iou_thr, (tuple, list)) else (0.0, neg_iou_thr)
        self.min_pos_iou = min_pos_iou
        self.match_low_quality = match_low_quality
        self.gt_max_assign_all = gt_max_assign_all
        self.ignore_iof_thr = ignore_iof_thr
        self.ignore_wrt_candidates = ignore_wrt_candidates
        self.offset = offset
        self.low_quality_to_best_gt = low_quality_to_best_gt

    def assign(self, boxes: Tensor, gt_boxes: Tensor, ignored_boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Index of each box's ground truth, NEGATIVE or IGNORED, (B,) int64; and its largest IoU (B,), 0 if covered.

        Args: boxes (B, 4), gt_boxes (G, 4), ignored_boxes (I, 4).
        """
        covered = self._covered(boxes, ignored_boxes)
        if len(gt_boxes):
            iou = box_iou(gt_boxes, boxes, self.offset)
            if covered is not None:
                iou.masked_fill_(covered, -1)  # neither positive nor negative, and nobody's best box
            best, index = iou.max(dim=0)
            negative = (best >= self.neg_range[0]) & (best < self.neg_range[1])
            matched = torch.where(best >= self.pos_iou_thr, index, torch.where(negative, NEGATIVE, IGNORED))
            if self.match_low_quality and len(boxes):
                matched = self._match_low_quality(iou, index, matched)
            return matched, best.clamp(min=0)
        matched = torch.full((len(boxes),), NEGATIVE, device=boxes.device)
        if covered is not None:
            matched = matched.masked_fill(covered, IGNORED)
        return matched, boxes.new_zeros(len(boxes))

    def _covered(self, boxes: Tensor, ignored_boxes: Tensor) -> Tensor | None:
        """Which boxes are too much covered by an ignored one, (B,) bool; None for none."""
        if self.ignore_iof_thr <= 0 or not len(ignored_boxes) or not len(boxes):
            return None
        if self.ignore_wrt_candidates:
            return box_iof(boxes, ignored_boxes, self.offset).amax(dim=1) > self.ignore_iof_thr
        return box_iof(ignored_boxes, boxes, self.offset).amax(dim=0) > self.ignore_iof_thr

    def _match_low_quality(self, iou: Tensor, index: Tensor, matched: Tensor) -> Tensor:
        """`matched` (B,) with each ground truth's best boxes; iou (G, B), index (B,) the best ground truth of each."""
        best, box = iou.max(dim=1, keepdim=True)
        bad = best < max(self.min_pos_iou, torch.finfo(best.dtype).tiny)  # also those that no box overlaps
        if self.gt_max_assign_all:
            takes = iou == best.masked_fill(bad, torch.inf)
        else:
            takes = (torch.arange(iou.shape[1], device=iou.device) == box) & ~bad
        if self.low_quality_to_best_gt:
            return torch.where(takes.any(dim=0), index, matched)
        rank = torch.arange(1, len(iou) + 1, dtype=torch.int32, device=iou.device)
        last = (takes * rank[:, None]).amax(dim=0)  # of several ground truths the last one takes the box
        return torch.where(last > 0, last.long() - 1, matched)
