"""What a head asks of an assigner and of a sampler, whichever class it is.

B boxes (anchors or proposals) of an image, G ground-truth boxes, I ignored boxes; boxes are xyxy in input pixels.
"""

from typing import Protocol

from torch import Tensor

NEGATIVE = -1
IGNORED = -2


class Assigner(Protocol):
    """Which ground truth each box answers for."""

    def assign(self, boxes: Tensor, gt_boxes: Tensor, ignored_boxes: Tensor) -> tuple[Tensor, Tensor]:
        """From (B, 4), (G, 4) and (I, 4): the index of each box's ground truth, NEGATIVE or IGNORED, (B,) int64; and
        its largest IoU (B,)."""


class Sampler(Protocol):
    """Which boxes are trained on.

    add_gt_as_proposals: the ground truth joins the proposals of a RoI head. A sampler whose class has
    ``needs_losses = True`` also gets the classification loss (B,) of every box, in a RoI head.
    """

    add_gt_as_proposals: bool

    def sample(self, matched: Tensor, iou: Tensor) -> tuple[Tensor, Tensor]:
        """Indices of the sampled positives and negatives, for `matched` and `iou` (B,) of an assigner."""
