"""Feature pyramid.

N images; L levels in, fine to coarse, (N, C_l, H_l, W_l); `num_outs` levels out, (N, out_channels, H_l, W_l).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from mmdet.config.errors import UserError
from mmdet.layers import ConvModule, init_conv
from mmdet.models.initialize import BaseModule
from mmdet.models.settings import check_channels
from mmdet.registry import MODELS


@MODELS.register_module()
class FPN(BaseModule):
    """Feature Pyramid Network (Lin et al. 2016).

    Args:
        in_channels: channels of each input map.
        num_outs: number of maps returned; those beyond the inputs come from subsampling the coarsest by 2
            (`add_extra_convs` False) or from stride-2 convolutions ('on_input', 'on_lateral', 'on_output').
        start_level, end_level: the inputs used, both included; ``end_level=-1`` is the last.
        relu_before_extra_convs: ReLU before every extra convolution but the first.
        no_norm_on_lateral: norm only on the 3x3 output convolutions.
        upsample_cfg: dict(mode=...) of F.interpolate, with which a coarse map joins the finer one. It goes to the finer
            map's size and not by a factor, so that `mmdet.layers.build` is not asked.

    Raises:
        UserError: levels that are not there, or too few outputs for them.
    """

    def __init__(
        self,
        in_channels: list[int],
        out_channels: int,
        num_outs: int,
        start_level: int = 0,
        end_level: int = -1,
        add_extra_convs: bool | str = False,
        relu_before_extra_convs: bool = False,
        no_norm_on_lateral: bool = False,
        conv_cfg: dict | None = None,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
        upsample_cfg: dict = dict(mode='nearest'),
        init_cfg: dict | list[dict] | None = None,
    ):
        super().__init__(init_cfg)
        last = len(in_channels) - 1 if end_level == -1 else end_level
        if not 0 <= start_level <= last < len(in_channels):
            raise UserError(
                f'FPN: start_level={start_level}, end_level={end_level} are not among the {len(in_channels)} inputs of '
                'in_channels, counted from 0'
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.start_level = start_level
        self.backbone_end_level = last + 1
        used = in_channels[self.start_level : self.backbone_end_level]
        if num_outs < len(used):
            raise UserError(f'FPN: num_outs={num_outs} is less than the {len(used)} levels it is built on')
        self.add_extra_convs = 'on_input' if add_extra_convs is True else add_extra_convs
        if self.add_extra_convs not in (False, 'on_input', 'on_lateral', 'on_output'):
            raise UserError(
                f"FPN: add_extra_convs must be False, 'on_input', 'on_lateral' or 'on_output', got {add_extra_convs!r}"
            )
        self.relu_before_extra_convs = relu_before_extra_convs
        self.num_outs = num_outs
        if set(upsample_cfg) != {'mode'}:
            raise UserError(f"FPN: upsample_cfg={upsample_cfg} has one key here, such as dict(mode='nearest')")
        self.upsample_cfg = upsample_cfg

        lateral_norm = None if no_norm_on_lateral else norm_cfg
        common = dict(conv_cfg=conv_cfg, act_cfg=act_cfg)
        self.lateral_convs = nn.ModuleList(
            ConvModule(channels, out_channels, 1, norm_cfg=lateral_norm, **common) for channels in used
        )
        self.fpn_convs = nn.ModuleList(
            ConvModule(out_channels, out_channels, 3, padding=1, norm_cfg=norm_cfg, **common) for _ in used
        )
        if self.add_extra_convs:
            for index in range(num_outs - len(used)):
                channels = used[-1] if index == 0 and self.add_extra_convs == 'on_input' else out_channels
                self.fpn_convs.append(
                    ConvModule(channels, out_channels, 3, stride=2, padding=1, norm_cfg=norm_cfg, **common)
                )
        for block in (*self.lateral_convs, *self.fpn_convs):
            init_conv(block.conv, nn.init.xavier_uniform_)

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """L maps (N, C_l, H_l, W_l) -> `num_outs` maps (N, out_channels, H_l, W_l), fine to coarse."""
        count = len(self.in_channels)
        if len(inputs) != count:
            raise UserError(f'FPN: {count} entries of in_channels for {len(inputs)} maps of the backbone')
        levels = slice(self.start_level, self.backbone_end_level)
        used = inputs[levels]
        check_channels(self, used, self.in_channels[levels])
        laterals = [self.lateral_convs[-1](used[-1])]
        for conv, x in zip(self.lateral_convs[-2::-1], used[-2::-1]):
            coarser = F.interpolate(laterals[0], size=x.shape[-2:], **self.upsample_cfg)
            laterals.insert(0, conv(x, coarser))
        outputs = [conv(x) for conv, x in zip(self.fpn_convs, laterals)]
        if not self.add_extra_convs:
            while len(outputs) < self.num_outs:
                outputs.append(F.max_pool2d(outputs[-1], 1, stride=2))
            return tuple(outputs)
        source = {
            'on_input': inputs[self.backbone_end_level - 1],
            'on_lateral': laterals[-1],
            'on_output': outputs[-1],
        }
        x = source[self.add_extra_convs]
        for index, conv in enumerate(self.fpn_convs[len(laterals) :]):
            x = conv(F.relu(x) if index > 0 and self.relu_before_extra_convs else x)
            outputs.append(x)
        return tuple(outputs)
