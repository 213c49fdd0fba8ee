"""SSD's coarser levels.

N images; K maps in and L levels out, fine to coarse, (N, C_l, H_l, W_l).
"""

import torch
from torch import Tensor, nn

from mmdet.config.errors import UserError
from mmdet.layers import ConvModule, init_conv
from mmdet.models.initialize import BaseModule
from mmdet.models.settings import check_channels
from mmdet.registry import MODELS


@MODELS.register_module()
class L2Norm(nn.Module):
    """The vector at each position with length 1, times a learned scale of each channel (arXiv 1506.04579, section 3.3).

    Args:
        n_dims: channels C.
        scale: of all channels at first.
        eps: added to the length.
    """

    def __init__(self, n_dims: int, scale: float = 20.0, eps: float = 1e-10):
        super().__init__()
        self.weight = nn.Parameter(torch.full((n_dims,), float(scale)))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape; lengths are computed in float32."""
        exact = x.float()
        length = exact.pow(2).sum(1, keepdim=True).sqrt() + self.eps
        return (self.weight[:, None, None] * exact / length).to(x.dtype)


@MODELS.register_module()
class SSDNeck(BaseModule):
    """Two convolutions for each further level, behind the backbone's maps (arXiv 1512.02325, fig. 2).

    Args:
        in_channels: channels of the K maps.
        out_channels: C_l of the L levels; the first K are `in_channels`.
        level_strides, level_paddings: of the second convolution of each of the L - K further levels.
        l2_norm_scale: of the `L2Norm` of the first map; None for none.
        last_kernel_size: of the last level's second convolution.

    Raises:
        UserError: lists that do not fit each other.
    """

    def __init__(
        self,
        in_channels: list[int],
        out_channels: list[int],
        level_strides: list[int],
        level_paddings: list[int],
        l2_norm_scale: float | None = 20.0,
        last_kernel_size: int = 3,
        conv_cfg: dict | None = None,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = dict(type='ReLU'),
        init_cfg: dict | list[dict] | None = None,
    ):
        super().__init__(init_cfg)
        self.in_channels, out_channels = list(in_channels), list(out_channels)
        count = len(self.in_channels)
        if out_channels[:count] != self.in_channels:
            raise UserError(f'SSDNeck: out_channels={out_channels} must begin with in_channels={self.in_channels}')
        if not len(out_channels) - count == len(level_strides) == len(level_paddings):
            raise UserError(
                f'SSDNeck: {len(level_strides)} level_strides and {len(level_paddings)} level_paddings for '
                f'{len(out_channels) - count} levels behind those of in_channels'
            )
        self.l2_norm = None if l2_norm_scale is None else L2Norm(self.in_channels[0], l2_norm_scale)
        layer = dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg, act_cfg=act_cfg)
        self.extra_layers = nn.ModuleList()
        for index, (stride, padding) in enumerate(zip(level_strides, level_paddings)):
            before, after = out_channels[count + index - 1 : count + index + 1]
            kernel = last_kernel_size if index == len(level_strides) - 1 else 3
            narrow = ConvModule(before, after // 2, 1, **layer)
            wide = ConvModule(after // 2, after, kernel, stride=stride, padding=padding, **layer)
            self.extra_layers.append(nn.Sequential(narrow, wide))
        for block in self.extra_layers.modules():
            init_conv(block, nn.init.xavier_uniform_)

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """K maps (N, C_l, H_l, W_l) -> L maps."""
        check_channels(self, inputs, self.in_channels)
        outputs = list(inputs)
        if self.l2_norm is not None:
            outputs[0] = self.l2_norm(outputs[0])
        for layer in self.extra_layers:
            conv, (height, width) = layer[1].conv, outputs[-1].shape[-2:]
            if min(height + 2 * conv.padding[0], width + 2 * conv.padding[1]) < max(conv.kernel_size):
                levels = len(self.in_channels) + len(self.extra_layers)
                raise UserError(f'SSDNeck: the images are too small for {levels} levels, one has a map of {height} x '
                                f'{width}. SSD takes square images: Resize with keep_ratio=False')
            outputs.append(layer(outputs[-1]))
        return tuple(outputs)
