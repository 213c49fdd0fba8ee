"""SSD's anchors.

L levels, A_l anchors per position of level l; boxes are xyxy in pixels of the padded input.
"""

import torch
from torch import Tensor

from mmdet.config.errors import UserError
from mmdet.models.task_modules.anchor_generator import AnchorGenerator
from mmdet.registry import TASK_UTILS

# Side of the first level's anchor and of the second's, in percent of the input's, by (input_size, smallest ratio).
_FIRST = {(300, 0.15): (7, 15), (300, 0.2): (10, 20), (512, 0.1): (4, 10), (512, 0.15): (7, 15)}


@TASK_UTILS.register_module()
class SSDAnchorGenerator(AnchorGenerator):
    """Of each position a square of the level's size, one between it and the next level's size, and for each ratio r a
    flat box and a tall one (arXiv 1512.02325, section 2.2).

    Args:
        strides: pixels between neighbouring positions of each level; the first centre is half a stride.
        ratios: of each level, the longer side over the shorter.
        min_sizes, max_sizes: in pixels, the level's size and the next level's; or by the next two options.
        basesize_ratio_range: size of the second level and bound of the last, as fractions of `input_size`. The sizes
            between are whole percents with equal steps. What stands before, and for which values, says `_FIRST`.
        input_size: side of the square input, 300 or 512.
        scale_major: False, mmdetection's name for the order above.
        clip_sizes: no side is longer than `input_size`, as in torchvision.
        rounded, offset: see `AnchorGenerator`; with offset 1 the first centre is half of the stride less 1.

    Raises:
        UserError: options that do not go together.
    """

    def __init__(
        self,
        strides: list[int],
        ratios: list[list[float]],
        min_sizes: list[float] | None = None,
        max_sizes: list[float] | None = None,
        basesize_ratio_range: tuple[float, float] = (0.15, 0.9),
        input_size: int = 300,
        scale_major: bool = False,
        clip_sizes: bool = False,
        rounded: bool = False,
        offset: float = 0.0,
    ):
        if scale_major:
            raise UserError("SSDAnchorGenerator: scale_major=True is not possible; False is the order of SSD's outputs")
        if (min_sizes is None) != (max_sizes is None):
            raise UserError('SSDAnchorGenerator: give both min_sizes and max_sizes, or neither')
        if min_sizes is None:
            min_sizes, max_sizes = _sizes(len(strides), basesize_ratio_range, input_size)
        if not len(strides) == len(ratios) == len(min_sizes) == len(max_sizes):
            raise UserError(
                f'SSDAnchorGenerator: {len(strides)} strides, {len(ratios)} ratios, {len(min_sizes)} min_sizes and '
                f'{len(max_sizes)} max_sizes; each level has one of each'
            )
        super().__init__(strides, [1.0], sizes=[[size] for size in min_sizes], rounded=rounded, offset=offset)
        self.longest = float(input_size) if clip_sizes else torch.inf
        self.base_anchors = [self._level(*level) for level in zip(strides, min_sizes, max_sizes, ratios)]

    @property
    def num_base_priors(self) -> list[int]:
        """A_l of each level."""
        return [len(anchors) for anchors in self.base_anchors]

    def _level(self, stride: int, size: float, next_size: float, ratios: list[float]) -> Tensor:
        """The anchors of a level's first position: (A_l, 4)."""
        between = (size * next_size) ** 0.5
        sides = [(size, size), (between, between)]
        for ratio in ratios:
            long, short = size * ratio**0.5, size / ratio**0.5
            sides += [(long, short), (short, long)]
        half = (torch.tensor(sides).clamp(max=self.longest) - self.offset) / 2
        centre = (stride - self.offset) / 2
        boxes = torch.cat([centre - half, centre + half], dim=1)
        return boxes.round() if self.rounded else boxes


def _sizes(levels: int, ratio_range: tuple[float, float], input_size: int) -> tuple[list[int], list[int]]:
    """Each level's size and the next level's, in pixels."""
    first = _FIRST.get((input_size, ratio_range[0]))
    if first is None:
        known = ', '.join(f'{size} with {ratio}' for size, ratio in _FIRST)
        raise UserError(
            f'SSDAnchorGenerator: input_size={input_size} with basesize_ratio_range={tuple(ratio_range)} has no rule '
            f'for the first level. Known are {known}; or give min_sizes and max_sizes'
        )
    low, high = (int(100 * ratio) for ratio in ratio_range)
    step = (high - low) // (levels - 2)
    percents = [*first, *(low + step * index for index in range(1, levels))]
    sizes = [int(input_size * percent / 100) for percent in percents]
    return sizes[:levels], sizes[1 : levels + 1]
