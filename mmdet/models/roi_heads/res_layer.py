"""C4's shared head: the last stage of a ResNet, computed for each RoI.

R RoIs, C channels of the backbone's map, S side of the RoI features; C' = 64 * 2**stage (x 4 for bottlenecks).
"""

from torch import Tensor

from mmdet.config.errors import UserError
from mmdet.layers import BATCH_NORMS
from mmdet.models.backbones.resnet import ResNet, res_layer
from mmdet.models.initialize import BaseModule
from mmdet.registry import MODELS


@MODELS.register_module()
class ResLayer(BaseModule):
    """One stage of a ResNet, between the RoI features and the heads (He et al. 2015, appendix A).

    Args:
        depth: of the ResNet.
        stage: 0 to 3, the first whose map the backbone does not give; 3 for C4.
        stride, dilation: of the stage.
        style, norm_cfg, norm_eval, conv_cfg: as in `ResNet`.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` of a whole ResNet, of which the stage is taken.
    """

    def __init__(
        self,
        depth: int,
        stage: int = 3,
        stride: int = 2,
        dilation: int = 1,
        style: str = 'pytorch',
        norm_cfg: dict = dict(type='BN', requires_grad=True),
        norm_eval: bool = True,
        conv_cfg: dict | None = None,
        init_cfg: dict | list[dict] | None = None,
    ):
        super().__init__(init_cfg)
        if depth not in ResNet.arch_settings or stage not in range(4):
            raise UserError(f'ResLayer: no stage {stage} of depth {depth}; depths are {sorted(ResNet.arch_settings)}, '
                            'stages 0 to 3')
        block, blocks = ResNet.arch_settings[depth]
        self.norm_eval = norm_eval
        self.name = f'layer{stage + 1}'
        width = 64 * 2**stage
        in_channels = 64 if stage == 0 else width // 2 * block.expansion
        layer = res_layer(
            block, blocks[stage], in_channels, width, stride,
            dilation=dilation, style=style, conv_cfg=conv_cfg, dcn=None, norm_cfg=norm_cfg, zero_init_residual=False,
        )  # fmt: skip
        self.add_module(self.name, layer)

    def train(self, mode: bool = True):
        super().train(mode)
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, BATCH_NORMS):
                    module.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """RoI features (R, C, S, S) -> (R, C', S / stride, S / stride)."""
        return getattr(self, self.name)(x)
