"""ResNet and ResNeXt backbones.

N images, C channels, H and W of the input; stage s in 0..3 has stride 4 * 2**s and base_channels * 2**s
(x 4 for bottlenecks) channels.
"""

import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmdet.checkpoints import backbone_weights
from mmdet.checkpoints.files import load_pretrained
from mmdet.config.errors import UserError
from mmdet.layers import BATCH_NORMS, build_conv_layer, build_norm_layer, conv_norm
from mmdet.models.options import apply_init_cfg
from mmdet.registry import MODELS


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the shortcut (He et al. 2015, fig. 5 left); `style` and groups are a bottleneck's."""

    expansion = 1

    def __init__(
        self, in_channels, channels, stride, dilation, downsample, conv_cfg, norm_cfg, style, groups, group_width
    ):
        super().__init__()
        self.conv1 = build_conv_layer(conv_cfg, in_channels, channels, 3, stride, dilation, dilation, bias=False)
        self.norm1_name, norm1 = build_norm_layer(norm_cfg, channels, postfix=1)
        self.add_module(self.norm1_name, norm1)
        self.conv2 = build_conv_layer(conv_cfg, channels, channels, 3, padding=1, bias=False)
        self.norm2_name, norm2 = build_norm_layer(norm_cfg, channels, postfix=2)
        self.add_module(self.norm2_name, norm2)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        out = conv_norm(self.conv1, getattr(self, self.norm1_name), x).relu_()
        out = conv_norm(self.conv2, getattr(self, self.norm2_name), out)
        return (out + shortcut(self.downsample, x)).relu_()

    @property
    def last_norm(self) -> nn.Module:
        return getattr(self, self.norm2_name)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and the shortcut (He et al. 2015, fig. 5 right; ResNeXt with groups).

    The stride sits in the 3x3 convolution for style 'pytorch', in the first 1x1 for 'caffe'.
    """

    expansion = 4

    def __init__(
        self, in_channels, channels, stride, dilation, downsample, conv_cfg, norm_cfg, style, groups, group_width
    ):
        super().__init__()
        width = channels if groups == 1 else groups * group_width
        first_stride, stride = (1, stride) if style == 'pytorch' else (stride, 1)
        self.conv1 = build_conv_layer(conv_cfg, in_channels, width, 1, first_stride, bias=False)
        self.norm1_name, norm1 = build_norm_layer(norm_cfg, width, postfix=1)
        self.add_module(self.norm1_name, norm1)
        self.conv2 = build_conv_layer(conv_cfg, width, width, 3, stride, dilation, dilation, groups, bias=False)
        self.norm2_name, norm2 = build_norm_layer(norm_cfg, width, postfix=2)
        self.add_module(self.norm2_name, norm2)
        self.conv3 = build_conv_layer(conv_cfg, width, channels * self.expansion, 1, bias=False)
        self.norm3_name, norm3 = build_norm_layer(norm_cfg, channels * self.expansion, postfix=3)
        self.add_module(self.norm3_name, norm3)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        out = conv_norm(self.conv1, getattr(self, self.norm1_name), x).relu_()
        out = conv_norm(self.conv2, getattr(self, self.norm2_name), out).relu_()
        out = conv_norm(self.conv3, getattr(self, self.norm3_name), out)
        return (out + shortcut(self.downsample, x)).relu_()

    @property
    def last_norm(self) -> nn.Module:
        return getattr(self, self.norm3_name)


def shortcut(downsample: nn.Sequential | None, x: Tensor) -> Tensor:
    return x if downsample is None else conv_norm(downsample[0], downsample[1], x)


# depth: (block, blocks per stage)
ARCHITECTURES = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


@MODELS.register_module()
class ResNet(nn.Module):
    """ResNet (He et al. 2015), returning the maps of `out_indices`: (N, C_s, H / stride_s, W / stride_s).

    Args:
        depth: 18, 34, 50, 101 or 152.
        frozen_stages: the stem and the stages up to this one are neither trained nor updated; -1 freezes nothing.
        conv_cfg: kind of every convolution, ``dict(type='ConvWS')`` for standardised weights.
        norm_cfg: norm of every convolution, with ``requires_grad=False`` to fix its scale and shift.
        norm_eval: keep all BatchNorm layers in eval mode, so that they use the pretrained statistics.
        style: 'pytorch' or 'caffe' (see `Bottleneck`).
        zero_init_residual: start every block as the identity (scale of its last norm 0).
        with_cp: recompute blocks in the backward pass to save memory.
        init_cfg: ``dict(type='Pretrained', checkpoint='torchvision://resnet50' | 'open-mmlab://NAME' | path | url)``,
            a backbone or a detector of any project that `mmdet.checkpoints` knows; or mmengine's random
            initialisers; None keeps Kaiming normal.
    """

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
        init_cfg: dict | list[dict] | None = None,
    ):
        super().__init__()
        if depth not in ARCHITECTURES:
            raise UserError(f'ResNet: no depth {depth}; choose one of {sorted(ARCHITECTURES)}')
        if style not in ('pytorch', 'caffe'):
            raise UserError(f"ResNet: style must be 'pytorch' or 'caffe', got {style!r}")
        if max(out_indices) >= num_stages:
            raise UserError(f'ResNet: out_indices {tuple(out_indices)} reach past num_stages={num_stages}')
        if groups > 1 and ARCHITECTURES[depth][0] is BasicBlock:
            raise UserError(f'ResNet: depth={depth} has no bottlenecks for groups={groups}; ResNeXt begins at 50')
        block, blocks = ARCHITECTURES[depth]
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.out_indices = tuple(out_indices)
        self.with_cp = with_cp
        self.init_cfg = init_cfg

        self.conv1 = build_conv_layer(conv_cfg, in_channels, base_channels, 7, 2, 3, bias=False)
        self.norm1_name, norm1 = build_norm_layer(norm_cfg, base_channels, postfix=1)
        self.add_module(self.norm1_name, norm1)
        self.stages = []
        channels = base_channels
        for stage in range(num_stages):
            layers = []
            for index in range(blocks[stage]):
                out_channels = base_channels * 2**stage * block.expansion
                stride = strides[stage] if index == 0 else 1
                downsample = None
                if index == 0 and (stride != 1 or channels != out_channels):
                    downsample = nn.Sequential(
                        build_conv_layer(conv_cfg, channels, out_channels, 1, stride, bias=False),
                        build_norm_layer(norm_cfg, out_channels)[1],
                    )
                layers.append(
                    block(
                        channels,
                        base_channels * 2**stage,
                        stride,
                        dilations[stage],
                        downsample,
                        conv_cfg,
                        norm_cfg,
                        style,
                        groups,
                        base_width * 2**stage,
                    )
                )
                channels = out_channels
            self.stages.append(f'layer{stage + 1}')
            self.add_module(self.stages[-1], nn.Sequential(*layers))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
            elif zero_init_residual and isinstance(module, block) and module.last_norm.weight is not None:
                nn.init.zeros_(module.last_norm.weight)
        self._freeze()

    def init_weights(self) -> None:
        """Load the weights that `init_cfg` names, or initialise as it says; called by the Runner, before training."""
        if not isinstance(self.init_cfg, dict) or self.init_cfg.get('type') != 'Pretrained':
            apply_init_cfg(self, self.init_cfg)
            return
        if 'checkpoint' not in self.init_cfg:
            raise UserError(f"ResNet: init_cfg of type 'Pretrained' lacks its checkpoint: {dict(self.init_cfg)}")
        uri = self.init_cfg['checkpoint']
        state = backbone_weights(load_pretrained(uri), uri)
        missing, unexpected = self.load_state_dict(state, strict=False)
        missing = [key for key in missing if not key.endswith('num_batches_tracked')]
        if missing or unexpected:
            raise UserError(
                f'ResNet: {uri} is not a matching backbone: {len(missing)} keys missing (first: {missing[:3]}), '
                f'{len(unexpected)} unexpected (first: {unexpected[:3]}); check depth, norm_cfg and the file'
            )
        print_log(f'backbone: {len(state)} arrays loaded from {uri}', logger='current')

    def train(self, mode: bool = True):
        super().train(mode)
        self._freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, BATCH_NORMS):
                    module.eval()
        return self

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        stem = [self.conv1, getattr(self, self.norm1_name)]
        for module in stem + [getattr(self, name) for name in self.stages[: self.frozen_stages]]:
            module.eval()
            module.requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Pictures (N, in_channels, H, W) -> the maps of `out_indices`, fine to coarse."""
        x = conv_norm(self.conv1, getattr(self, self.norm1_name), x).relu_()
        x = nn.functional.max_pool2d(x, 3, 2, 1)
        outputs = []
        for index, name in enumerate(self.stages):
            for block in getattr(self, name):
                if self.with_cp and torch.is_grad_enabled() and x.requires_grad:
                    x = checkpoint(block, x, use_reentrant=False)
                else:
                    x = block(x)
            if index in self.out_indices:
                outputs.append(x)
        return tuple(outputs)


@MODELS.register_module()
class ResNeXt(ResNet):
    """ResNeXt (Xie et al. 2016): bottlenecks whose 3x3 convolution has `groups` groups of `base_width` channels."""

    def __init__(self, depth: int, groups: int = 32, base_width: int = 4, **kwargs):
        super().__init__(depth, groups=groups, base_width=base_width, **kwargs)
