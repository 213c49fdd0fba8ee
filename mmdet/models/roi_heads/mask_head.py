"""Mask head: a mask of each RoI for every class.

R RoIs, C classes, S side of the RoI features; masks are 2S x 2S.
"""

import torch
from torch import Tensor, nn

from mmdet.config.errors import UserError
from mmdet.layers import ConvModule
from mmdet.models.options import apply_init_cfg
from mmdet.registry import MODELS


@MODELS.register_module()
class FCNMaskHead(nn.Module):
    """Convolutions, a 2x transposed convolution and a 1x1 output (Mask R-CNN, fig. 4 right).

    Args:
        class_agnostic: one mask per RoI instead of one per class.
        upsample_cfg: dict(type='deconv', scale_factor=2), the only type there is.
    """

    def __init__(
        self,
        num_convs: int = 4,
        in_channels: int = 256,
        conv_kernel_size: int = 3,
        conv_out_channels: int = 256,
        num_classes: int = 80,
        class_agnostic: bool = False,
        upsample_cfg: dict = dict(type='deconv', scale_factor=2),
        conv_cfg: dict | None = None,
        norm_cfg: dict | None = None,
        loss_mask: dict = dict(type='CrossEntropyLoss', use_mask=True),
        init_cfg: dict | list[dict] | None = None,
    ):
        super().__init__()
        if (upsample_cfg or {}).get('type') != 'deconv':
            raise UserError(f"FCNMaskHead: upsample_cfg={upsample_cfg} must be of type 'deconv'")
        self.num_classes = num_classes
        self.class_agnostic = class_agnostic
        self.loss_mask = MODELS.build(loss_mask)
        self.convs = nn.ModuleList(
            ConvModule(
                in_channels if i == 0 else conv_out_channels,
                conv_out_channels,
                conv_kernel_size,
                padding=(conv_kernel_size - 1) // 2,
                conv_cfg=conv_cfg,
                norm_cfg=norm_cfg,
            )
            for i in range(num_convs)
        )
        scale = upsample_cfg.get('scale_factor', 2)
        channels = conv_out_channels if num_convs else in_channels
        self.upsample = nn.ConvTranspose2d(channels, conv_out_channels, scale, stride=scale)
        self.conv_logits = nn.Conv2d(conv_out_channels, 1 if class_agnostic else num_classes, 1)
        for module in (self.upsample, self.conv_logits):
            nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
            nn.init.zeros_(module.bias)
        apply_init_cfg(self, init_cfg)

    def forward(self, x: Tensor) -> Tensor:
        """RoI features (R, channels, S, S) -> logits (R, C or 1, 2S, 2S)."""
        for conv in self.convs:
            x = conv(x)
        return self.conv_logits(self.upsample(x).relu_())

    def loss(self, logits: Tensor, labels: Tensor, targets: Tensor) -> dict:
        """Mean over the pixels of each RoI's true class: labels (R,), targets (R, 2S, 2S) in [0, 1]."""
        return dict(loss_mask=self.loss_mask(self._own_class(logits, labels), targets))

    def predict(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Probabilities (R, 2S, 2S) of each RoI's class `labels` (R,)."""
        return self._own_class(logits, labels).float().sigmoid()

    def _own_class(self, logits: Tensor, labels: Tensor) -> Tensor:
        column = torch.zeros_like(labels) if self.class_agnostic else labels
        return logits[torch.arange(len(labels), device=labels.device), column]
