"""Which boxes are trained on: at random, all of them, or the hard ones.

B boxes (anchors or proposals) of an image; `matched` and `iou` (B,) are an assigner's.
"""

import torch
from torch import Tensor

from mmdet.config.absent import absent
from mmdet.config.errors import UserError
from mmdet.config.overrides import refuse_overrides
from mmdet.config.values import check_options, number, whole_number
from mmdet.models.task_modules.protocols import NEGATIVE
from mmdet.registry import TASK_UTILS


@TASK_UTILS.register_module()
@refuse_overrides('extend/head.md', _sample_pos='choose_positives', _sample_neg='choose_negatives')
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

    def sample(self, matched: Tensor, iou: Tensor) -> tuple[Tensor, Tensor]:
        """Indices of the sampled positives and negatives, for `matched` and `iou` (B,) of an assigner."""
        positive = self.choose_positives((matched >= 0).nonzero().squeeze(1), self.num_positive, matched)
        negative = (matched == NEGATIVE).nonzero().squeeze(1)
        return positive, self.choose_negatives(negative, self.num_negative(len(positive)), iou)

    def num_negative(self, num_positive: int) -> int:
        """How many negatives may go with so many positives."""
        most = int(self.neg_pos_ub * max(num_positive, 1)) if self.neg_pos_ub >= 0 else self.num
        return min(self.num - num_positive, most)

    def choose_positives(self, indices: Tensor, count: int, matched: Tensor) -> Tensor:
        """At most `count` of the positives, which are the rows `indices` of `matched` (B,)."""
        return self.random_choice(indices, count)

    def choose_negatives(self, indices: Tensor, count: int, iou: Tensor) -> Tensor:
        """At most `count` of the negatives, which are the rows `indices` of `iou` (B,)."""
        return self.random_choice(indices, count)

    @staticmethod
    def random_choice(indices: Tensor, count: int) -> Tensor:
        """At most `count` of `indices`, each as likely as any other."""
        if len(indices) <= count:
            return indices
        return indices[torch.randperm(len(indices), device=indices.device)[:count]]

    def _fill(self, chosen: Tensor, indices: Tensor, count: int) -> Tensor:
        """Add random others of `indices` until there are `count`."""
        rest = indices[~torch.isin(indices, chosen)]
        return torch.cat([chosen, self.random_choice(rest, count - len(chosen))])


@TASK_UTILS.register_module()
@refuse_overrides('extend/head.md', _sample_pos='sample', _sample_neg='sample')
class PseudoSampler:
    """Every box that the assigner calls positive or negative (one-stage detectors with focal loss)."""

    add_gt_as_proposals = False

    def sample(self, matched: Tensor, iou: Tensor) -> tuple[Tensor, Tensor]:
        """Indices of all positives and of all negatives, for `matched` (B,) of an assigner."""
        return (matched >= 0).nonzero().squeeze(1), (matched == NEGATIVE).nonzero().squeeze(1)


@TASK_UTILS.register_module()
@refuse_overrides('extend/head.md', _sample_pos='sample', _sample_neg='sample', hard_mining='sample')
class OHEMSampler(RandomSampler):
    """The boxes with the highest classification loss (online hard example mining, arXiv 1604.03540).

    The RoI head sees `needs_losses`, and passes the loss (B,) of every candidate.
    """

    needs_losses = True

    def sample(self, matched: Tensor, iou: Tensor, losses: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Indices of the positives and negatives of the highest `losses` (B,).

        Raises:
            UserError: there are no losses, since the sampler is an RPN's.
        """
        if losses is None:
            raise UserError('OHEMSampler works in the RoI head only: an RPN has no losses before sampling')
        positive = self._hardest((matched >= 0).nonzero().squeeze(1), self.num_positive, losses)
        negative = (matched == NEGATIVE).nonzero().squeeze(1)
        return positive, self._hardest(negative, self.num_negative(len(positive)), losses)

    @staticmethod
    def _hardest(indices: Tensor, count: int, losses: Tensor) -> Tensor:
        return indices[losses[indices].topk(min(count, len(indices))).indices]


@TASK_UTILS.register_module()
@refuse_overrides('extend/head.md', sample_via_interval='choose_negatives')
class IoUBalancedNegSampler(RandomSampler):
    """Negatives spread evenly over their IoU with the ground truth (Libra R-CNN, arXiv 1904.02701, section 3.1).

    Args:
        floor_thr: negatives below this IoU form a group of their own; for 0 or less those of IoU 0 do.
        floor_fraction: their share of the negatives; more of them are taken only where others lack.
        num_bins: intervals of equal length from `floor_thr` to the largest IoU of any box, positives included (1 where
            the ground truth joins), which share the others.

    Raises:
        UserError: `floor_fraction` or `num_bins` out of range.
    """

    def __init__(
        self,
        num: int,
        pos_fraction: float,
        neg_pos_ub: float = -1,
        add_gt_as_proposals: bool = True,
        floor_thr: float = -1,
        floor_fraction: float = 0,
        num_bins: int = 3,
    ):
        super().__init__(num, pos_fraction, neg_pos_ub, add_gt_as_proposals)
        if not 0 <= floor_fraction <= 1 or num_bins < 1:
            raise UserError(
                f'IoUBalancedNegSampler: floor_fraction={floor_fraction} must be in [0, 1], num_bins={num_bins} >= 1'
            )
        self.floor_thr = floor_thr
        self.floor_fraction = floor_fraction
        self.num_bins = num_bins

    def choose_negatives(self, indices: Tensor, count: int, iou: Tensor) -> Tensor:
        if len(indices) <= count:
            return indices
        top, iou = float(iou.max()), iou[indices]
        start = max(self.floor_thr, 0.0)
        is_floor = iou < start if start > 0 else iou == 0
        upper = indices[~is_floor]
        chosen = [self._spread(upper, iou[~is_floor], int(count * (1 - self.floor_fraction)), start, top)]
        chosen.append(self.random_choice(indices[is_floor], count - len(chosen[0])))
        return self._fill(torch.cat(chosen), indices, count)

    def _spread(self, indices: Tensor, iou: Tensor, count: int, start: float, top: float) -> Tensor:
        if len(indices) <= count:
            return indices
        edges = torch.linspace(start, top, self.num_bins + 1, device=iou.device)[1:-1]
        interval = torch.bucketize(iou, edges, right=True)
        chosen = [self.random_choice(indices[interval == i], count // self.num_bins) for i in range(self.num_bins)]
        return self._fill(torch.cat(chosen), indices, count)


@TASK_UTILS.register_module()
class InstanceBalancedPosSampler(RandomSampler):
    """As many positives for each ground-truth box as for any other (Libra R-CNN)."""

    def choose_positives(self, indices: Tensor, count: int, matched: Tensor) -> Tensor:
        if len(indices) <= count:
            return indices
        instances = matched[indices].unique()
        share = round(count / len(instances)) + 1
        chosen = torch.cat([self.random_choice(indices[matched[indices] == i], share) for i in instances])
        return self.random_choice(chosen, count) if len(chosen) >= count else self._fill(chosen, indices, count)


@TASK_UTILS.register_module()
class CombinedSampler(RandomSampler):
    """One sampler's positives and another's negatives.

    Args:
        pos_sampler, neg_sampler: their configs, to which `num` and `pos_fraction` are added.

    Raises:
        UserError: one of them is an OHEMSampler.
    """

    def __init__(self, pos_sampler: dict, neg_sampler: dict, num: int, pos_fraction: float, **kwargs):
        super().__init__(num, pos_fraction, **kwargs)
        common = dict(num=num, pos_fraction=pos_fraction)
        self.pos_sampler = TASK_UTILS.build({**common, **pos_sampler})
        self.neg_sampler = TASK_UTILS.build({**common, **neg_sampler})
        if any(getattr(sampler, 'needs_losses', False) for sampler in (self.pos_sampler, self.neg_sampler)):
            raise UserError('CombinedSampler: OHEMSampler chooses by losses, which its parts do not get; use it alone')

    def choose_positives(self, indices: Tensor, count: int, matched: Tensor) -> Tensor:
        return self.pos_sampler.choose_positives(indices, count, matched)

    def choose_negatives(self, indices: Tensor, count: int, iou: Tensor) -> Tensor:
        return self.neg_sampler.choose_negatives(indices, count, iou)


_ANY_CLASS = 'a sampler is any class with sample(matched, iou), see task_modules/protocols.py'
__path__: list[str] = []  # modules below it: see mmdet.moved
__getattr__ = absent(__name__, BaseSampler=_ANY_CLASS, SamplingResult=_ANY_CLASS)
