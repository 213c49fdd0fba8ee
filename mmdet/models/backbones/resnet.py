"""ResNet and ResNeXt backbones.

N images, C channels, H and W of the input; stage s in 0..3 has stride 4 * 2**s and base_channels * 2**s
(x 4 for bottlenecks) channels C_s.
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmdet.config.errors import UserError
from mmdet.config.overrides import refuse_overrides
from mmdet.layers import BATCH_NORMS, build_conv_layer, build_norm_layer, conv_norm, init_conv
from mmdet.models.initialize import BaseModule
from mmdet.registry import MODELS


class Block(nn.Module):
    """A chain of convolutions with norms, and the shortcut around it (He et al. 2015, fig. 5).

    Args:
        chain: arguments of each convolution: input and output channels, kernel, stride, padding, dilation, groups.
        conv_cfgs: kind of each convolution.
        downsample: projection and norm that give x the shape of the chain's end; None for none.
    """

    def __init__(
        self,
        chain: list[tuple[int, ...]],
        conv_cfgs: list[dict | None],
        downsample: nn.Sequential | None = None,
        norm_cfg: dict = dict(type='BN'),
    ):
        super().__init__()
        self.norm_names = []
        for index, (arguments, conv_cfg) in enumerate(zip(chain, conv_cfgs), start=1):
            self.add_module(f'conv{index}', build_conv_layer(conv_cfg, *arguments, bias=False))
            name, norm = build_norm_layer(norm_cfg, arguments[1], postfix=index)
            self.add_module(name, norm)
            self.norm_names.append(name)
        self.downsample = downsample

    @property
    def pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Each convolution of the chain and its norm."""
        return [(getattr(self, f'conv{i}'), getattr(self, name)) for i, name in enumerate(self.norm_names, start=1)]

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        shortcut = x if self.downsample is None else conv_norm(*self.downsample, x)
        last = len(self.norm_names)
        own = self.downsample is not None and not self.downsample[-1]._forward_hooks  # which may have kept it
        for i, name in enumerate(self.norm_names, start=1):  # not `pairs`: two Python frames a block
            added = shortcut if i == last else None
            x = conv_norm(getattr(self, f'conv{i}'), getattr(self, name), x, added, relu=True, spare=own)
        return x


class BasicBlock(Block):
    """Two 3x3 convolutions; the options of a bottleneck alone are not used."""

    expansion = 1

    def __init__(
        self, in_channels, channels, stride=1, dilation=1, style='pytorch', conv_cfg=None, dcn=None, **common
    ):
        first = in_channels, channels, 3, stride, dilation, dilation
        super().__init__([first, (channels, channels, 3, 1, 1)], [conv_cfg] * 2, **common)


class Bottleneck(Block):
    """1x1, 3x3, 1x1 convolutions, the second in groups in a ResNeXt and of the kind `dcn` where that is given.

    The stride sits in the 3x3 convolution for style 'pytorch', in the first 1x1 for 'caffe'.
    """

    expansion = 4

    def __init__(
        self, in_channels, channels, stride=1, dilation=1, style='pytorch', conv_cfg=None, dcn=None,
        groups=1, group_width=None, **common,
    ):  # fmt: skip
        width = channels if groups == 1 else groups * group_width
        first_stride, stride = (1, stride) if style == 'pytorch' else (stride, 1)
        first, last = (in_channels, width, 1, first_stride), (width, channels * self.expansion, 1)
        middle = dict(dcn or {})
        if not middle or (middle.pop('fallback_on_stride', False) and stride > 1):
            middle = conv_cfg
        chain = [first, (width, width, 3, stride, dilation, dilation, groups), last]
        super().__init__(chain, [conv_cfg, middle, conv_cfg], **common)


def res_layer(
    block: type[Block],
    count: int,
    in_channels: int,
    channels: int,
    stride: int,
    conv_cfg: dict | None,
    norm_cfg: dict,
    zero_init_residual: bool,
    **options,
) -> nn.Sequential:
    """A stage: `count` blocks, the first with the stride and, where the shape changes, a projection.

    (N, in_channels, H, W) -> (N, channels * block.expansion, H / stride, W / stride); `options` are the blocks'.
    """
    out_channels = channels * block.expansion
    layers = []
    for index in range(count):
        downsample = None
        if index == 0 and (stride != 1 or in_channels != out_channels):
            downsample = nn.Sequential(
                build_conv_layer(conv_cfg, in_channels, out_channels, 1, stride, bias=False),
                build_norm_layer(norm_cfg, out_channels)[1],
            )
        layer = block(
            in_channels, channels, stride=stride if index == 0 else 1,
            downsample=downsample, conv_cfg=conv_cfg, norm_cfg=norm_cfg, **options,
        )  # fmt: skip
        for conv, _ in layer.pairs + ([] if downsample is None else [downsample]):
            init_conv(conv)
        scale = getattr(layer.pairs[-1][1], 'weight', None)
        if zero_init_residual and scale is not None:
            nn.init.zeros_(scale)
        layers.append(layer)
        in_channels = out_channels
    return nn.Sequential(*layers)


@MODELS.register_module()
@refuse_overrides(
    'extend/backbone.md', make_res_layer='__init__', _make_stem_layer='__init__', make_stage_plugins='__init__',
)  # fmt: skip
class ResNet(BaseModule):
    """ResNet (He et al. 2015), returning the maps of `out_indices`: (N, C_s, H / stride_s, W / stride_s).

    Args:
        depth: 18, 34, 50, 101 or 152.
        num_stages: of four, from the first on; `strides` and `dilations` have at least as many entries.
        frozen_stages: the stem (0) and the stages 1 to this one are neither trained nor updated; -1 freezes nothing.
        conv_cfg: kind of every convolution, ``dict(type='ConvWS')`` for standardised weights; see `mmdet.layers.build`.
        norm_cfg: norm of every convolution, with ``requires_grad=False`` to fix its scale and shift.
        norm_eval: keep all BatchNorm layers in eval mode, so that they use the pretrained statistics.
        style: 'pytorch' or 'caffe' (see `Bottleneck`).
        zero_init_residual: start every block as the identity (scale of its last norm 0).
        dcn: kind of the 3x3 convolutions in the stages of `stage_with_dcn`, ``dict(type='DCN' | 'DCNv2',
            deform_groups=1, fallback_on_stride=False)``; fallback_on_stride leaves those with a stride as they are.
        with_cp: recompute blocks in the backward pass to save memory.
        init_cfg: see `mmdet.models.initialize`; None keeps Kaiming normal.

    Raises:
        UserError: options that do not go together.
    """

    # depth: (block, blocks per stage)
    arch_settings = {
        18: (BasicBlock, (2, 2, 2, 2)),
        34: (BasicBlock, (3, 4, 6, 3)),
        50: (Bottleneck, (3, 4, 6, 3)),
        101: (Bottleneck, (3, 4, 23, 3)),
        152: (Bottleneck, (3, 8, 36, 3)),
    }

    def __init__(
        self,
        depth: int,
        in_channels: int = 3,
        base_channels: int = 64,
        num_stages: int = 4,
        strides: tuple[int, ...] = (1, 2, 2, 2),
        dilations: tuple[int, ...] = (1, 1, 1, 1),
        out_indices: tuple[int, ...] = (0, 1, 2, 3),
        style: str = 'pytorch',
        frozen_stages: int = -1,
        conv_cfg: dict | None = None,
        norm_cfg: dict = dict(type='BN', requires_grad=True),
        norm_eval: bool = True,
        zero_init_residual: bool = True,
        with_cp: bool = False,
        groups: int = 1,
        base_width: int = 64,
        dcn: dict | None = None,
        stage_with_dcn: tuple[bool, ...] = (False, False, False, False),
        init_cfg: dict | list[dict] | None = None,
    ):
        super().__init__(init_cfg)
        if depth not in self.arch_settings:
            raise UserError(f'ResNet: no depth {depth}; choose one of {sorted(self.arch_settings)}')
        block, blocks = self.arch_settings[depth]
        if style not in ('pytorch', 'caffe'):
            raise UserError(f"ResNet: style must be 'pytorch' or 'caffe', got {style!r}")
        most = min(len(blocks), len(strides), len(dilations))
        if not 1 <= num_stages <= most:
            raise UserError(
                f'ResNet: num_stages={num_stages} must be 1 to {most}: there are {len(blocks)} stages, {len(strides)} '
                f'strides and {len(dilations)} dilations'
            )
        if not out_indices or min(out_indices) < 0 or max(out_indices) >= num_stages:
            raise UserError(f'ResNet: out_indices={tuple(out_indices)} must be 0 to {num_stages - 1} (num_stages - 1)')
        if not -1 <= frozen_stages <= num_stages:
            raise UserError(f'ResNet: frozen_stages={frozen_stages} must be -1 to {num_stages} (num_stages)')
        if groups > 1 and block is BasicBlock:
            raise UserError(f'ResNet: depth={depth} has no bottlenecks for groups={groups}; ResNeXt begins at 50')
        if dcn and block is BasicBlock:
            raise UserError(f'ResNet: depth={depth} has no bottlenecks for dcn={dcn}; use 50 or more, or conv_cfg')
        if dcn and (len(stage_with_dcn) < num_stages or not any(stage_with_dcn)):
            raise UserError(f'ResNet: stage_with_dcn={stage_with_dcn} must say for {num_stages} stages which have dcn')
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.out_indices = tuple(out_indices)
        self.with_cp = with_cp

        self.conv1 = build_conv_layer(conv_cfg, in_channels, base_channels, 7, 2, 3, bias=False)
        self.norm1_name, norm1 = build_norm_layer(norm_cfg, base_channels, postfix=1)
        self.add_module(self.norm1_name, norm1)
        self.stages = []
        channels = base_channels
        for stage in range(num_stages):
            width = base_channels * 2**stage
            layer = res_layer(
                block, blocks[stage], channels, width, strides[stage],
                dilation=dilations[stage], style=style, conv_cfg=conv_cfg, dcn=dcn if stage_with_dcn[stage] else None,
                norm_cfg=norm_cfg, zero_init_residual=zero_init_residual,
                **(dict(groups=groups, group_width=base_width * 2**stage) if groups > 1 else {}),
            )  # fmt: skip
            channels = width * block.expansion
            self.stages.append(f'layer{stage + 1}')
            self.add_module(self.stages[-1], layer)
        init_conv(self.conv1)
        self._freeze_stages()

    def train(self, mode: bool = True):
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, BATCH_NORMS):
                    module.eval()
        return self

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        stem = [self.conv1, getattr(self, self.norm1_name)]
        for module in stem + [getattr(self, name) for name in self.stages[: self.frozen_stages]]:
            module.eval()
            module.requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images (N, in_channels, H, W) -> the maps of `out_indices`, fine to coarse."""
        x = conv_norm(self.conv1, getattr(self, self.norm1_name), x, relu=True)
        x = nn.functional.max_pool2d(x, 3, 2, 1)
        outputs = []
        for index, name in enumerate(self.stages):
            stage = getattr(self, name)
            if self.with_cp and torch.is_grad_enabled():
                for block in stage:
                    x = checkpoint(block, x, use_reentrant=False) if x.requires_grad else block(x)
            else:
                x = stage(x)  # as a module: hooks of a user's hear it
            if index in self.out_indices:
                outputs.append(x)
        return tuple(outputs)
