"""Features of each RoI from the pyramid level that fits its size.

N images, L levels of H_l x W_l positions, R RoIs (image index, x1, y1, x2, y2 in input pixels), C channels, S output
size.
"""

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from mmdet.config.errors import UserError
from mmdet.config.overrides import refuse_overrides
from mmdet.models.initialize import BaseModule
from mmdet.ops import RoIAlign, multiscale_roi_align
from mmdet.ops.roi_align import map_levels
from mmdet.registry import MODELS


def to_rois(boxes: list[Tensor]) -> Tensor:
    """Boxes of each image, [(n_i, 4)], as RoIs (R, 5): the image's index first."""
    index = [b.new_full((b.shape[0], 1), i) for i, b in enumerate(boxes)]
    return torch.cat([torch.cat(index), torch.cat(boxes)], dim=1)


@MODELS.register_module()
@refuse_overrides('extend/head.md', build_roi_layers='__init__', map_roi_levels='forward', roi_rescale='forward')
class SingleRoIExtractor(BaseModule):
    """RoIAlign, or another RoI layer, on one level per RoI (FPN paper, eq. 1).

    Args:
        roi_layer: dict(type='RoIAlign', output_size=S, sampling_ratio=0, aligned=True), see `mmdet.ops.RoIAlign`; all
            levels are pooled by one operator. Any other type is a registered class, `Class(spatial_scale=cells per
            pixel, **options)`: a map (N, C, H_l, W_l) and RoIs (R, 5) -> (R, C, S, S). `roi_layers` has one a level.
        featmap_strides: strides of the levels used, from the finest.
        out_channels: C, which the features bring with them.
        finest_scale: RoIs smaller than twice this many pixels (root of the area) use the finest level.

    Raises:
        UserError: fewer feature maps than strides.
    """

    def __init__(
        self,
        roi_layer: dict,
        out_channels: int,
        featmap_strides: list[int],
        finest_scale: float = 56,
    ):
        super().__init__()
        self.out_channels = out_channels
        self.scales = [1 / stride for stride in featmap_strides]
        self.finest_scale = finest_scale
        options = dict(roi_layer)
        if options.pop('type', 'RoIAlign') == 'RoIAlign':
            options = dict(sampling_ratio=0, aligned=True) | options
            layers = [RoIAlign(spatial_scale=scale, **options) for scale in self.scales]
        else:
            layers = [MODELS.build(dict(roi_layer, spatial_scale=scale)) for scale in self.scales]
        self.roi_layers = nn.ModuleList(layers)
        self.output_size = _pair(options['output_size'])

    def forward(self, features: tuple[Tensor, ...], rois: Tensor) -> Tensor:
        """Pyramid [(N, C, H_l, W_l)] and RoIs (R, 5) -> (R, C, S, S)."""
        if len(features) < len(self.scales):
            raise UserError(
                f'SingleRoIExtractor: {len(self.scales)} featmap_strides for {len(features)} maps of the neck'
            )
        features = list(features[: len(self.scales)])
        layer = self.roi_layers[0]
        if not isinstance(layer, RoIAlign):
            return self._pool_each_level(features, rois)
        return multiscale_roi_align(features, rois, self.output_size, self.scales, layer.sampling_ratio, layer.aligned,
                                    self.finest_scale, layer.legacy)

    def _pool_each_level(self, features: list[Tensor], rois: Tensor) -> Tensor:
        levels = map_levels(rois, len(features), self.finest_scale)
        pooled = features[0].new_zeros(rois.shape[0], self.out_channels, *self.output_size)
        for level, (layer, feature) in enumerate(zip(self.roi_layers, features)):
            own = (levels == level).nonzero().squeeze(1)  # a layer without RoIs has gradients of 0, as DDP wants
            pooled = pooled.index_copy(0, own, layer(feature, rois[own]).to(pooled.dtype))
        return pooled
