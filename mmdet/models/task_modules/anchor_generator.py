"""Anchors of every level.

L levels, A anchors per position, H_l and W_l of a level's map; boxes are xyxy in pixels of the padded input.
"""

import torch
from torch import Tensor

from mmdet.config.errors import UserError
from mmdet.config.overrides import refuse_overrides
from mmdet.config.values import check_options, some_numbers
from mmdet.ops.library import exporting
from mmdet.registry import TASK_UTILS


@TASK_UTILS.register_module()
@refuse_overrides(
    'extend/head.md',
    gen_base_anchors='__init__',
    gen_single_level_base_anchors='__init__',
    single_level_grid_priors='grid_priors',
    grid_anchors='grid_priors',
    single_level_grid_anchors='grid_priors',
    _meshgrid='grid_priors',
    valid_flags='grid_priors',
    single_level_valid_flags='grid_priors',
    sparse_priors='grid_priors',
)
class AnchorGenerator:
    """Anchors of all ratios and scales at every position (Faster R-CNN, section 3.1.1).

    Args:
        strides: pixels between neighbouring positions of each level.
        ratios: height over width.
        scales: side of the square anchor over the level's base size; or give `octave_base_scale` and
            `scales_per_octave`: octave_base_scale * 2**(i / scales_per_octave).
        scale_major: order of a position's anchors: all scales of the first ratio first; if False, all ratios of the
            first scale first.
        base_sizes: default the strides.
        center_offset: the first centre, as a fraction of the base size.
        sizes: sides in pixels of each level's square anchors, instead of scales times base size.
        rounded: round the corners of each level's A anchors to whole pixels (torchvision, old checkpoints).
        floor_strides: a level's stride is the input's size over the map's, rounded down, as in torchvision: where the
            input is not a multiple of a coarse stride, its positions stand closer than `strides` says.
        offset: 1 for inclusive corners: a box from x1 to x2 is x2 - x1 + 1 wide and the base box starts at 0.

    Raises:
        UserError: options that do not go together, or maps of another number than strides.
    """

    @classmethod
    def check_config(cls, cfg: dict, path: str, whole: dict, training: bool) -> None:
        check_options(cfg, path, {'scales|ratios|strides': some_numbers()})

    def __init__(
        self,
        strides: list[int],
        ratios: list[float],
        scales: list[float] | None = None,
        base_sizes: list[float] | None = None,
        octave_base_scale: float | None = None,
        scales_per_octave: int | None = None,
        scale_major: bool = True,
        center_offset: float = 0.0,
        sizes: list[list[float]] | None = None,
        rounded: bool = False,
        floor_strides: bool = False,
        offset: float = 0.0,
    ):
        if not all(isinstance(stride, (int, float)) for stride in strides):
            raise UserError(f'AnchorGenerator: strides={strides} must be numbers, each for both directions')
        if octave_base_scale is not None and scales_per_octave is not None:
            if scales is not None:
                raise UserError('AnchorGenerator: scales exclude octave_base_scale and scales_per_octave; give one')
            scales = [octave_base_scale * 2 ** (i / scales_per_octave) for i in range(scales_per_octave)]
        if (scales is None) == (sizes is None):
            raise UserError('AnchorGenerator: give scales, or octave_base_scale and scales_per_octave, or sizes')
        self.strides = list(strides)
        self.ratios = torch.tensor(ratios)
        self.center_offset = center_offset
        self.rounded = rounded
        self.floor_strides = floor_strides
        self.offset = offset
        self.scale_major = scale_major
        base_sizes = base_sizes or strides
        if sizes is None:
            sizes = [[size * scale for scale in scales] for size in base_sizes]
        self.base_anchors = [self._base(*level) for level in zip(base_sizes, sizes, strict=True)]
        self._cache: dict = {}

    @property
    def num_base_anchors(self) -> int:
        """A, the anchors at each position."""
        return len(self.base_anchors[0])

    def _base(self, base_size: float, sizes: list[float]) -> Tensor:
        """The A anchors of a level's first position: (A, 4)."""
        root, sizes = self.ratios.sqrt()[:, None], torch.tensor(sizes)
        if not self.scale_major:
            root, sizes = root.T, sizes[:, None]
        widths = (1 / root * sizes).flatten() - self.offset
        heights = (root * sizes).flatten() - self.offset
        centre = self.center_offset * base_size if not self.offset else 0.5 * (base_size - self.offset)
        boxes = centre + 0.5 * torch.stack([-widths, -heights, widths, heights], dim=1)
        return boxes.round() if self.rounded else boxes

    def grid_priors(self, map_sizes: list[tuple[int, int]], device: torch.device | str = 'cpu') -> list[Tensor]:
        """Anchors of each level, [(H_l * W_l * A, 4)], ordered by row, column, anchor."""
        if len(map_sizes) != len(self.strides):
            raise UserError(f'AnchorGenerator: {len(map_sizes)} maps for {len(self.strides)} strides')
        if exporting():  # sizes may be symbols, and what is made here belongs to the graph
            return self._grids(map_sizes, device)
        key = (tuple(map_sizes), str(device))
        if key not in self._cache:
            if len(self._cache) > 16:  # multi-scale training: few sizes recur
                self._cache.clear()
            self._cache[key] = self._grids(map_sizes, device)
        return self._cache[key]

    def _grids(self, map_sizes: list[tuple[int, int]], device: torch.device | str) -> list[Tensor]:
        return [
            self._grid(base, self._stride(level, map_sizes), map_sizes[level]).to(device)
            for level, base in enumerate(self.base_anchors)
        ]

    def _stride(self, level: int, map_sizes: list[tuple[int, int]]) -> tuple[int, int]:
        """Pixels between rows and between columns."""
        if not self.floor_strides:
            return self.strides[level], self.strides[level]
        return tuple(map_sizes[0][axis] * self.strides[0] // map_sizes[level][axis] for axis in (0, 1))

    @staticmethod
    def _grid(base: Tensor, stride: tuple[int, int], size: tuple[int, int]) -> Tensor:
        y, x = torch.meshgrid(torch.arange(size[0]) * stride[0], torch.arange(size[1]) * stride[1], indexing='ij')
        shifts = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
        return (base[None] + shifts).reshape(-1, 4)
