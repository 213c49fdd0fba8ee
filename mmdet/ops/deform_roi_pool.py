"""RoIAlign whose bins move (deformable RoI pooling, arXiv 1703.06211, section 2.2).

N images, C channels, (H, W) a map, K RoIs of (h, w) bins, S samples along a side of a bin. Boxes are xyxy in pixels of
the input image; `spatial_scale` takes them to cells of the map.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.utils import _pair


def deform_roi_pool(
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    gamma: float = 0.1,
) -> Tensor:
    """Average bilinear samples of `input` (N, C, H, W) in the moved (h, w) bins of each box -> (K, C, h, w).

    Args:
        rois: (K, 5) of [image, x1, y1, x2, y2].
        offset: (K, 2, h, w), by how many widths and heights of the RoI, times `gamma`, each bin moves in x and in y.
            With None or zeros this is `roi_align` with ``aligned=True``.
        sampling_ratio: S; 0 or less takes as many as the bin has cells.

    Computed in float32 at least, with gradients of `input` and `offset`; what a sample reads more than a cell
    outside the map is 0.
    """
    height, width = _pair(output_size)
    dtype = torch.promote_types(input.dtype, torch.float32)
    boxes = rois[:, 1:].to(dtype) * spatial_scale - 0.5  # half a cell: a cell's value stands at its centre
    sides = boxes[:, 2:] - boxes[:, :2]
    bins = sides / sides.new_tensor([width, height])
    counts = torch.full_like(bins, sampling_ratio) if sampling_ratio > 0 else bins.ceil().clamp(min=1)
    ys, xs = torch.meshgrid(
        torch.arange(height, device=rois.device), torch.arange(width, device=rois.device), indexing='ij'
    )
    # the first corner of every bin, (K, h, w, 2) of x and y
    corners = boxes[:, None, None, :2] + torch.stack([xs, ys], dim=-1) * bins[:, None, None]
    if offset is not None:
        corners = corners + gamma * sides[:, None, None] * offset.to(dtype).permute(0, 2, 3, 1)
    total = corners.new_zeros(len(rois), input.shape[1], height, width)
    for sample in _samples(counts):
        inside = (sample < counts).all(1)
        points = corners + ((sample + 0.5) / counts * bins)[:, None, None]
        total = total + _bilinear(input.to(dtype), rois[:, 0], points) * inside[:, None, None, None]
    return (total / counts.prod(1)[:, None, None, None]).to(input.dtype)


def _samples(counts: Tensor) -> list[Tensor]:
    """The x and y index of every sample that the RoI with most of them has; `counts` (K, 2) are those of each."""
    across, down = counts.amax(0).long().tolist() if len(counts) else (1, 1)  # none, but connected
    return [counts.new_tensor([x, y]) for y in range(down) for x in range(across)]


def _bilinear(input: Tensor, images: Tensor, points: Tensor) -> Tensor:
    """Values (K, C, h, w) of the maps `images` (K,) of `input` (N, C, H, W) at points (K, h, w, 2), x and y in cells.

    Up to a cell outside the map the border's value holds, beyond it 0.
    """
    sizes = points.new_tensor([input.shape[3], input.shape[2]])
    grid = (2 * points + 1) / sizes - 1
    values = points.new_zeros(len(points), input.shape[1], *points.shape[1:3])
    for index, feature in enumerate(input):
        own = (images == index).nonzero().squeeze(1)
        # RoIs in the place of rows: one image each
        flat = grid[own].flatten(1, 2)[None]
        read = F.grid_sample(feature[None], flat, padding_mode='border', align_corners=False)
        values = values.index_copy(0, own, read[0].transpose(0, 1).unflatten(2, points.shape[1:3]))
    near = ((points >= -1) & (points <= sizes)).all(-1)
    return values * near[:, None]
