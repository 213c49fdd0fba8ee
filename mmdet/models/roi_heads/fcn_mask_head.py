"""Mask head: a mask of each RoI for every class.

R RoIs, C classes, S side of the RoI features; masks are s S x s S, with the factor s = 2 by default.
"""

import torch
from torch import Tensor, nn

from mmdet.config.contracts import on_first_call
from mmdet.config.overrides import refuse_overrides
from mmdet.layers import build_upsample_layer, conv_stack, init_conv
from mmdet.models import contracts
from mmdet.models.initialize import BaseModule
from mmdet.models.settings import check_channels
from mmdet.registry import MODELS


@MODELS.register_module()
@refuse_overrides(
    'extend/head.md',
    get_targets="the RoI head's loss",
    loss_and_target='loss',
    predict_by_feat='predict',
    get_seg_masks='predict',
    _predict_by_feat_single='predict',
)
class FCNMaskHead(BaseModule):
    """Convolutions, upsampling and a 1x1 output (Mask R-CNN, fig. 4 right).

    Args:
        class_agnostic: one mask per RoI instead of one per class.
        upsample_cfg: dict(type='deconv' | 'nearest' | 'bilinear' | None, scale_factor=s) or a registered class, see
            `mmdet.layers.build`. A ReLU follows one that learns. With None s is 1.
    """

    compiles = dict(forward='rois')

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
        super().__init__(init_cfg)
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.class_agnostic = class_agnostic
        self.loss_mask = MODELS.build(loss_mask)
        on_first_call(self.loss_mask, 'forward', contracts.loss)
        self.convs = conv_stack(
            num_convs, in_channels, conv_out_channels, conv_kernel_size, conv_cfg=conv_cfg, norm_cfg=norm_cfg
        )
        channels = conv_out_channels if num_convs else in_channels
        self.upsample = build_upsample_layer(upsample_cfg, channels, conv_out_channels)
        self.learns_upsampling = any(True for _ in self.upsample.parameters())
        self.conv_logits = nn.Conv2d(conv_out_channels, 1 if class_agnostic else num_classes, 1)
        init_conv(self.upsample)
        init_conv(self.conv_logits)

    def forward(self, x: Tensor) -> Tensor:
        """RoI features (R, channels, S, S) -> logits (R, C or 1, s S, s S)."""
        check_channels(self, [x], [self.in_channels])
        for conv in self.convs:
            x = conv(x)
        x = self.upsample(x)
        return self.conv_logits(x.relu_() if self.learns_upsampling else x)

    def loss(self, logits: Tensor, labels: Tensor, targets: Tensor) -> dict:
        """Mean over the pixels of each RoI's true class: labels (R,), targets (R, s S, s S) in [0, 1]."""
        return dict(loss_mask=self.loss_mask(self._own_class(logits, labels), targets))

    def predict(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Probabilities (R, s S, s S) of each RoI's class `labels` (R,)."""
        return self._own_class(logits, labels).float().sigmoid()

    def _own_class(self, logits: Tensor, labels: Tensor) -> Tensor:
        column = torch.zeros_like(labels) if self.class_agnostic else labels
        return logits[torch.arange(labels.shape[0], device=labels.device), column]
