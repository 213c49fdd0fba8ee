"""Balanced feature pyramid of Libra R-CNN.

N images; L levels, fine to coarse, (N, C, H_l, W_l) each; P = H_r * W_r positions of the level that is refined.
"""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from mmdet.config.errors import UserError
from mmdet.layers import ConvModule, init_conv
from mmdet.models.initialize import BaseModule
from mmdet.registry import MODELS


class NonLocal(nn.Module):
    """Every position plus a mixture of all positions, weighted by their likeness (arXiv 1711.07971, section 3.2).

    It starts as the identity (section 4.1).
    """

    def __init__(self, channels: int, conv_cfg: dict | None = None, norm_cfg: dict | None = None):
        super().__init__()
        common = dict(conv_cfg=conv_cfg, act_cfg=None)
        self.g = ConvModule(channels, channels, 1, **common)
        self.conv_out = ConvModule(channels, channels, 1, norm_cfg=norm_cfg, **common)
        self.theta = ConvModule(channels, channels, 1, **common)
        self.phi = ConvModule(channels, channels, 1, **common)
        for block in (self.g, self.theta, self.phi):
            init_conv(block.conv, partial(nn.init.normal_, std=0.01))
        init_conv(self.conv_out.conv, nn.init.xavier_uniform_)
        if norm_cfg is None:
            init_conv(self.conv_out.conv, nn.init.zeros_)
        else:
            nn.init.zeros_(self.conv_out.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H_r, W_r) -> the same shape."""
        values, queries, keys = (conv(x).flatten(2) for conv in (self.g, self.theta, self.phi))  # (N, C, P)
        likeness = (queries.transpose(1, 2) @ keys).float().softmax(-1).to(values.dtype)  # (N, P, P)
        mixed = (likeness @ values.transpose(1, 2)).transpose(1, 2)
        return x + self.conv_out(mixed.reshape(x.shape))


@MODELS.register_module()
class BFP(BaseModule):
    """The mean of all levels, refined and added to each (arXiv 1904.02701, section 3.2); follows an FPN.

    Args:
        in_channels: C.
        num_levels: L.
        refine_level: the level whose size the mean has.
        refine_type: 'non_local', 'conv' or None.

    Raises:
        UserError: options that do not go together.
    """

    def __init__(
        self,
        in_channels: int,
        num_levels: int,
        refine_level: int = 2,
        refine_type: str | None = None,
        conv_cfg: dict | None = None,
        norm_cfg: dict | None = None,
        init_cfg: dict | list[dict] | None = None,
    ):
        super().__init__(init_cfg)
        if refine_type not in (None, 'conv', 'non_local') or not 0 <= refine_level < num_levels:
            raise UserError(
                f"BFP: refine_type={refine_type!r} must be 'non_local', 'conv' or None, "
                f'and refine_level={refine_level} one of the {num_levels} levels'
            )
        self.num_levels = num_levels
        self.refine_level = refine_level
        common = dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg)
        self.refine = None
        if refine_type == 'conv':
            self.refine = ConvModule(in_channels, in_channels, 3, padding=1, **common)
        elif refine_type == 'non_local':
            self.refine = NonLocal(in_channels, **common)

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """L maps -> L maps of the same shapes."""
        if len(inputs) != self.num_levels:
            raise UserError(f'BFP: {len(inputs)} maps for num_levels={self.num_levels}')
        size = inputs[self.refine_level].shape[-2:]
        mean = sum(resize(x, size) for x in inputs) / len(inputs)
        if self.refine is not None:
            mean = self.refine(mean)
        return tuple(x + resize(mean, x.shape[-2:]) for x in inputs)


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """To a finer size by repetition, to a coarser one by the maximum."""
    if x.shape[-2] > size[0]:
        return F.adaptive_max_pool2d(x, size)
    return F.interpolate(x, size=size, mode='nearest')
