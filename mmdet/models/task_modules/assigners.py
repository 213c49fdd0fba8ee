"""Which ground truth a box answers for, and which boxes are trained on.

B boxes (anchors or proposals), G ground-truth boxes, I ignored boxes.
"""

import torch
from torch import Tensor

from mmdet.config.values import check_options, number, whole_number
from mmdet.registry import TASK_UTILS
from mmdet.structures.boxes import box_iof, box_iou

NEGATIVE = -1
IGNORED = -2


@TASK_UTILS.register_module()
class MaxIoUAssigner:
    """A box is positive for its best ground truth from `pos_iou_thr` on and negative below `neg_iou_thr`.

    Args:
        neg_iou_thr: upper bound, or (lower, upper); boxes between the thresholds are not trained on.
        match_low_quality: every ground truth also takes the boxes of its highest IoU, if that is at least
            `min_pos_iou`: all that tie, or one with ``gt_max_assign_all=False``.
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
    ):
        self.pos_iou_thr = pos_iou_thr
        self.neg_range = tuple(neg_iou_thr) if isinstance(neg_iou_thr, (tuple, list)) else (0.0, neg_iou_thr)
        self.min_pos_iou = min_pos_iou
        self.match_low_quality = match_low_quality
        self.gt_max_assign_all = gt_max_assign_all
        self.ignore_iof_thr = ignore_iof_thr
        self.ignore_wrt_candidates = ignore_wrt_candidates
        self.offset = offset

    def __call__(self, boxes: Tensor, gt_boxes: Tensor, ignored_boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Index of each box's ground truth, NEGATIVE or IGNORED, (B,) int64; and its largest IoU (B,), 0 if covered."""
        covered = self._covered(boxes, ignored_boxes)
        if len(gt_boxes):
            iou = box_iou(gt_boxes, boxes, self.offset)
            if covered is not None:
                iou.masked_fill_(covered, -1)  # neither positive nor negative, and nobody's best box
            best, index = iou.max(dim=0)
            negative = (best >= self.neg_range[0]) & (best < self.neg_range[1])
            matched = torch.where(best >= self.pos_iou_thr, index, torch.where(negative, NEGATIVE, IGNORED))
            if self.match_low_quality and len(boxes):
                matched = self._match_low_quality(iou, matched)
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

    def _match_low_quality(self, iou: Tensor, matched: Tensor) -> Tensor:
        best, box = iou.max(dim=1, keepdim=True)
        bad = best < max(self.min_pos_iou, torch.finfo(best.dtype).tiny)  # also those that no box overlaps
        if self.gt_max_assign_all:
            takes = iou == best.masked_fill(bad, torch.inf)
        else:
            takes = (torch.arange(iou.shape[1], device=iou.device) == box) & ~bad
        rank = torch.arange(1, len(iou) + 1, dtype=torch.int32, device=iou.device)
        last = (takes * rank[:, None]).amax(dim=0)  # of several ground truths the last one takes the box
        return torch.where(last > 0, last.long() - 1, matched)


@TASK_UTILS.register_module()
class RandomSampler:
    """Up to `num` boxes at random, at most `pos_fraction` of them positive.

    Args:
        neg_pos_ub: at most this many negatives per positive; negative for no bound.
        add_gt_as_proposals: the ground truth joins the proposals of the RoI head.
    """

    @classmethod
    def check_config(cls, cfg: dict, path: str, whole: dict, training: bool) -> None:
        check_options(cfg, path, {'num': whole_number(1), 'pos_fraction': number(0, 1)})

    def __init__(self, num: int, pos_fraction: float, neg_pos_ub: float = -1, add_gt_as_proposals: bool = True):
        self.num = num
        self.num_positive = int(num * pos_fraction)
        self.neg_pos_ub = neg_pos_ub
        self.add_gt_as_proposals = add_gt_as_proposals

    def __call__(self, matched: Tensor, iou: Tensor) -> tuple[Tensor, Tensor]:
        """Indices of the sampled positives and negatives, for `matched` and `iou` (B,) of an assigner."""
        positive = self.choose_positives((matched >= 0).nonzero().squeeze(1), self.num_positive, matched)
        negative = (matched == NEGATIVE).nonzero().squeeze(1)
        return positive, self.choose_negatives(negative, self.num_negative(len(positive)), iou)

    def num_negative(self, num_positive: int) -> int:
        """How many negatives may go with so many positives."""
        most = int(self.neg_pos_ub * max(num_positive, 1)) if self.neg_pos_ub >= 0 else self.num
        return min(self.num - num_positive, most)

    def choose_positives(self, indices: Tensor, count: int, matched: Tensor) -> Tensor:
        return self._choose(indices, count)

    def choose_negatives(self, indices: Tensor, count: int, iou: Tensor) -> Tensor:
        return self._choose(indices, count)

    @staticmethod
    def _choose(indices: Tensor, count: int) -> Tensor:
        if len(indices) <= count:
            return indices
        return indices[torch.randperm(len(indices), device=indices.device)[:count]]

    def _fill(self, chosen: Tensor, indices: Tensor, count: int) -> Tensor:
        """Add random others of `indices` until there are `count`."""
        rest = indices[~torch.isin(indices, chosen)]
        return torch.cat([chosen, self._choose(rest, count - len(chosen))])


@TASK_UTILS.register_module()
class PseudoSampler:
    """Every box that the assigner calls positive or negative (one-stage detectors with focal loss)."""

    add_gt_as_proposals = False

    def __call__(self, matched: Tensor, iou: Tensor) -> tuple[Tensor, Tensor]:
        return (matched >= 0).nonzero().squeeze(1), (matched == NEGATIVE).nonzero().squeeze(1)
