"""RoI layers that work on one level: what `SingleRoIExtractor` builds once for each stride.

N images, C channels, H and W of the level's map; K RoIs (image index, x1, y1, x2, y2 in input pixels) of h x w bins.
"""

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from mmdet.ops.deform_roi_pool import deform_roi_pool
from mmdet.registry import MODELS


@MODELS.register_module()
class RoIPool(nn.Module):
    """The maximum of each bin, with corners rounded to cells (Fast R-CNN, section 2.1), by torchvision.

    Args:
        output_size: (h, w), or both.
        spatial_scale: cells of the map per pixel.
    """

    def __init__(self, output_size: int | tuple[int, int], spatial_scale: float):
        super().__init__()
        self.output_size = _pair(output_size)
        self.spatial_scale = spatial_scale

    def forward(self, x: Tensor, rois: Tensor) -> Tensor:
        """(N, C, H, W) and (K, 5) -> (K, C, h, w)."""
        from torchvision.ops import roi_pool  # slow to import, and few models need it

        dtype = torch.promote_types(x.dtype, torch.float32)
        return roi_pool(x.to(dtype), rois.to(dtype), self.output_size, self.spatial_scale).to(x.dtype)


@MODELS.register_module()
class DeformRoIPoolPack(nn.Module):
    """RoIAlign whose bins move by offsets found in the RoI itself (arXiv 1703.06211, section 2.2).

    A first pooling finds the offsets, through three fully connected layers of which the last begins at 0; the second
    uses them. See `mmdet.ops.deform_roi_pool`.

    Args:
        output_size: (h, w), or both.
        output_channels: C.
        deform_fc_channels: width of the fully connected layers.
        spatial_scale: cells of the map per pixel.
        sampling_ratio: samples along a side of a bin; 0 takes as many as it has cells.
        gamma: the offsets' unit, in sides of the RoI.
    """

    def __init__(
        self,
        output_size: int | tuple[int, int],
        output_channels: int,
        spatial_scale: float,
        deform_fc_channels: int = 1024,
        sampling_ratio: int = 0,
        gamma: float = 0.1,
    ):
        super().__init__()
        self.output_size = _pair(output_size)
        self.options = dict(spatial_scale=spatial_scale, sampling_ratio=sampling_ratio, gamma=gamma)
        bins = self.output_size[0] * self.output_size[1]
        self.offset_fc = nn.Sequential(
            nn.Linear(bins * output_channels, deform_fc_channels),
            nn.ReLU(inplace=True),
            nn.Linear(deform_fc_channels, deform_fc_channels),
            nn.ReLU(inplace=True),
            nn.Linear(deform_fc_channels, bins * 2),
        )
        nn.init.zeros_(self.offset_fc[-1].weight)
        nn.init.zeros_(self.offset_fc[-1].bias)

    def forward(self, x: Tensor, rois: Tensor) -> Tensor:
        """(N, C, H, W) and (K, 5) -> (K, C, h, w)."""
        first = self._pool(x, rois, None)
        return self._pool(x, rois, self._offset(first))

    def _pool(self, x: Tensor, rois: Tensor, offset: Tensor | None) -> Tensor:
        return deform_roi_pool(x, rois, offset, self.output_size, **self.options)

    def _offset(self, pooled: Tensor) -> Tensor:
        """(K, C, h, w) -> (K, 2, h, w)."""
        return self.offset_fc(pooled.flatten(1)).unflatten(1, (2, *self.output_size))


@MODELS.register_module()
class ModulatedDeformRoIPoolPack(DeformRoIPoolPack):
    """`DeformRoIPoolPack` whose bins are also scaled, by 0 to 1 (arXiv 1811.11168, eq. 2); all begin at 1/2."""

    def __init__(
        self,
        output_size: int | tuple[int, int],
        output_channels: int,
        spatial_scale: float,
        deform_fc_channels: int = 1024,
        **options,
    ):
        super().__init__(output_size, output_channels, spatial_scale, deform_fc_channels, **options)
        bins = self.output_size[0] * self.output_size[1]
        self.mask_fc = nn.Sequential(
            nn.Linear(bins * output_channels, deform_fc_channels),
            nn.ReLU(inplace=True),
            nn.Linear(deform_fc_channels, bins),
            nn.Sigmoid(),
        )
        nn.init.zeros_(self.mask_fc[2].weight)
        nn.init.zeros_(self.mask_fc[2].bias)

    def forward(self, x: Tensor, rois: Tensor) -> Tensor:
        """(N, C, H, W) and (K, 5) -> (K, C, h, w)."""
        first = self._pool(x, rois, None)
        scales = self.mask_fc(first.flatten(1)).unflatten(1, (1, *self.output_size))
        return self._pool(x, rois, self._offset(first)) * scales
