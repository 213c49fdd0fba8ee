"""Box heads: class and box of each RoI.

R RoIs, P of them positive, C classes, S side of the RoI features; the background is class C. Boxes are xyxy in input
pixels.
"""

import torch
from torch import Tensor, nn

from mmdet.config.contracts import must_have, on_first_call
from mmdet.config.errors import UserError
from mmdet.config.overrides import refuse_overrides
from mmdet.layers import conv_stack
from mmdet.models import contracts
from mmdet.models.initialize import BaseModule
from mmdet.models.settings import check_channels
from mmdet.registry import MODELS, TASK_UTILS


@MODELS.register_module()
@refuse_overrides(
    'extend/head.md',
    _add_conv_fc_branch='__init__',
    get_targets="the RoI head's sample",
    _get_targets_single="the RoI head's sample",
    loss_and_target='loss',
    predict_by_feat="the RoI head's predict",
    get_bboxes="the RoI head's predict",
    _predict_by_feat_single="the RoI head's predict",
    refine_bboxes="the RoI head's refine",
    regress_by_class="the RoI head's refine",
)
class ConvFCBBoxHead(BaseModule):
    """Shared convolutions and fully connected layers, then optional branches, then `fc_cls` and `fc_reg`.

    Args:
        num_shared_convs, num_shared_fcs, num_cls_convs, num_cls_fcs, num_reg_convs, num_reg_fcs: depth of the parts.
        in_channels, conv_out_channels, fc_out_channels: channels of the RoI features, width of each layer of the kind.
        roi_feat_size: S.
        num_classes: C.
        reg_class_agnostic: one box per RoI instead of one per class.
        with_cls, with_reg: whether there are `fc_cls` and `fc_reg`, with their branches and losses.
        with_avg_pool: average the S x S positions before the first fully connected layer.
        conv_cfg, norm_cfg: kind and norm of the convolutions.
        reg_decoded_bbox: `loss_bbox` compares boxes in pixels (IoU losses) instead of deltas.

    Raises:
        UserError: convolutions of a branch after fully connected layers, or of one that is not there.
    """

    compiles = dict(forward='rois')

    def __init__(
        self,
        num_shared_convs: int = 0,
        num_shared_fcs: int = 0,
        num_cls_convs: int = 0,
        num_cls_fcs: int = 0,
        num_reg_convs: int = 0,
        num_reg_fcs: int = 0,
        in_channels: int = 256,
        conv_out_channels: int = 256,
        fc_out_channels: int = 1024,
        roi_feat_size: int | tuple[int, int] = 7,
        num_classes: int = 80,
        reg_class_agnostic: bool = False,
        with_cls: bool = True,
        with_reg: bool = True,
        with_avg_pool: bool = False,
        reg_decoded_bbox: bool = False,
        conv_cfg: dict | None = None,
        norm_cfg: dict | None = None,
        bbox_coder: dict = dict(type='DeltaXYWHBBoxCoder', target_stds=[0.1, 0.1, 0.2, 0.2]),
        loss_cls: dict = dict(type='CrossEntropyLoss'),
        loss_bbox: dict = dict(type='SmoothL1Loss'),
        init_cfg: dict | list[dict] | None = None,
    ):
        super().__init__(init_cfg)
        if not (with_cls or with_reg):
            raise UserError('ConvFCBBoxHead: with_cls=False and with_reg=False leave nothing to find; set one of them')
        self.with_cls = with_cls
        self.with_reg = with_reg
        self.num_classes = num_classes
        self.reg_class_agnostic = reg_class_agnostic
        self.with_avg_pool = with_avg_pool
        self.reg_decoded_bbox = reg_decoded_bbox
        self.bbox_coder = TASK_UTILS.build(bbox_coder)
        self.loss_cls = MODELS.build(loss_cls)
        self.loss_bbox = MODELS.build(loss_bbox)
        must_have(self.bbox_coder, 'compared', 'decode', like='DeltaXYWHBBoxCoder')
        on_first_call(self.loss_cls, 'forward', contracts.loss)
        on_first_call(self.loss_bbox, 'forward', contracts.loss)

        def convs(count: int, channels: int) -> nn.ModuleList:
            return conv_stack(count, channels, conv_out_channels, conv_cfg=conv_cfg, norm_cfg=norm_cfg)

        def fcs(count: int, features: int) -> nn.ModuleList:
            return nn.ModuleList(
                nn.Linear(features if i == 0 else fc_out_channels, fc_out_channels) for i in range(count)
            )

        height, width = (roi_feat_size,) * 2 if isinstance(roi_feat_size, int) else roi_feat_size
        positions = 1 if with_avg_pool else height * width
        channels = conv_out_channels if num_shared_convs else in_channels
        self.in_channels = in_channels
        self.shared_convs = convs(num_shared_convs, in_channels)
        self.shared_fcs = fcs(num_shared_fcs, channels * positions)
        features = {}
        for name, exists, num_convs, num_fcs in (
            ('cls', with_cls, num_cls_convs, num_cls_fcs),
            ('reg', with_reg, num_reg_convs, num_reg_fcs),
        ):
            if not exists and (num_convs or num_fcs):
                raise UserError(f'ConvFCBBoxHead: with_{name}=False leaves no branch for num_{name}_convs={num_convs} '
                                f'and num_{name}_fcs={num_fcs}')
            if num_convs and num_shared_fcs:
                raise UserError(
                    f'ConvFCBBoxHead: num_{name}_convs={num_convs} cannot follow num_shared_fcs={num_shared_fcs}'
                )
            branch_channels = conv_out_channels if num_convs else channels
            start = fc_out_channels if num_shared_fcs else branch_channels * positions
            setattr(self, f'{name}_convs', convs(num_convs, channels))
            setattr(self, f'{name}_fcs', fcs(num_fcs, start))
            features[name] = fc_out_channels if num_fcs else start
        self.fc_cls = self.fc_reg = None
        if with_cls:
            self.fc_cls = nn.Linear(features['cls'], num_classes + 1)
        if with_reg:
            self.fc_reg = nn.Linear(features['reg'], 4 if reg_class_agnostic else 4 * num_classes)
        for fc in (*self.shared_fcs, *self.cls_fcs, *self.reg_fcs):
            nn.init.xavier_uniform_(fc.weight)
            nn.init.zeros_(fc.bias)
        for fc, std in ((self.fc_cls, 0.01), (self.fc_reg, 0.001)):
            if fc is not None:
                nn.init.normal_(fc.weight, std=std)
                nn.init.zeros_(fc.bias)

    def forward(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """RoI features (R, channels, S, S) -> logits (R, C + 1), deltas (R, C or 1, 4); None for what it has not."""
        check_channels(self, [x], [self.in_channels])
        for conv in self.shared_convs:
            x = conv(x)
        if self.shared_fcs:
            x = self._flatten(x)
            for fc in self.shared_fcs:
                x = fc(x).relu_()
        logits = deltas = None
        if self.with_cls:
            logits = self.fc_cls(self._branch(x, self.cls_convs, self.cls_fcs))
        if self.with_reg:
            deltas = self.fc_reg(self._branch(x, self.reg_convs, self.reg_fcs))
            deltas = deltas.unflatten(1, (-1, 4))
        return logits, deltas

    def _branch(self, x: Tensor, convs: nn.ModuleList, fcs: nn.ModuleList) -> Tensor:
        for conv in convs:
            x = conv(x)
        x = self._flatten(x)
        for fc in fcs:
            x = fc(x).relu_()
        return x

    def _flatten(self, x: Tensor) -> Tensor:
        if x.dim() == 4 and self.with_avg_pool:
            x = x.mean((2, 3))
        return x.flatten(1)

    def loss(
        self,
        logits: Tensor | None,
        deltas: Tensor | None,
        boxes: Tensor,
        labels: Tensor,
        gt_boxes: Tensor,
        positive: Tensor,
        weight: Tensor | None = None,
    ) -> dict:
        """Losses averaged over the R sampled RoIs, and the accuracy in percent.

        logits and deltas as of `forward`, boxes (R, 4), labels (R,) with C for background, gt_boxes (R, 4) of which the
        background's rows are ignored, positive (P,) the other rows, weight (R,) of each RoI in the classification loss.
        """
        num, losses = len(labels), {}
        if logits is not None:
            accuracy = 100 * (logits.detach().argmax(1) == labels).float().sum() / max(num, 1)
            losses.update(loss_cls=self.loss_cls(logits, labels, weight, avg_factor=num), acc=accuracy)
        if deltas is not None:
            column = torch.zeros_like(positive) if self.reg_class_agnostic else labels[positive]
            pred, target = self.bbox_coder.compared(
                boxes[positive], deltas[positive, column], gt_boxes[positive], self.reg_decoded_bbox
            )
            losses.update(loss_bbox=self.loss_bbox(pred, target, avg_factor=num))
        return losses


@MODELS.register_module()
class BBoxHead(ConvFCBBoxHead):
    """`fc_cls` and `fc_reg` alone (what follows C4's shared head)."""


@MODELS.register_module()
class Shared2FCBBoxHead(ConvFCBBoxHead):
    """Two shared fully connected layers (the usual head of FPN detectors)."""

    def __init__(self, **kwargs):
        super().__init__(num_shared_fcs=2, **kwargs)


@MODELS.register_module()
class Shared4Conv1FCBBoxHead(ConvFCBBoxHead):
    """Four shared convolutions and one fully connected layer: the head whose convolutions a norm can follow."""

    def __init__(self, **kwargs):
        super().__init__(num_shared_convs=4, num_shared_fcs=1, **kwargs)
