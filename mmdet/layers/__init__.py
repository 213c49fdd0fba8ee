"""Building blocks: convolution with a norm, the norms by name, and Cross-Iteration Batch Normalization."""

from mmdet.layers import batch_stats
from mmdet.layers.batch_renorm import BatchRenorm
from mmdet.layers.cbn import (
    CrossIterBatchNorm2d,
    cbn_state,
    convert_cbn,
    kernels,
    load_cbn_state,
    plan_cbn,
    revert_cbn,
    set_cbn_epoch,
)
from mmdet.layers.conv import (
    CenConv2d,
    ConvModule,
    ConvWS2d,
    build_activation_layer,
    build_conv_layer,
    conv_norm,
    conv_stack,
    init_conv,
    kaiming_normal,
)
from mmdet.layers.deform_conv import DeformConv2d, ModulatedDeformConv2d
from mmdet.layers.ema import ExpMomentumEMA
from mmdet.layers.filter_response_norm import TLU, FilterResponseNorm2d
from mmdet.layers.losses.basic import BalancedL1Loss, CrossEntropyLoss, L1Loss, SmoothL1Loss
from mmdet.layers.losses.focal import FocalLoss
from mmdet.layers.losses.iou import BoundedIoULoss, CIoULoss, DIoULoss, GIoULoss, IoULoss
from mmdet.layers.moving_average_norm import MovingAverageBatchNorm2d
from mmdet.layers.norm import BATCH_NORMS, BatchNorm2d, SyncBN, build_norm_layer
from mmdet.layers.packed import pack
from mmdet.layers.upsample import build_upsample_layer
from mmdet.ops import COMPILED

batch_stats.ENABLED = kernels.ENABLED = COMPILED  # they stand alone and cannot ask

__all__ = [
    'BATCH_NORMS', 'BalancedL1Loss', 'BatchNorm2d', 'BatchRenorm', 'BoundedIoULoss', 'CIoULoss', 'CenConv2d',
    'ConvModule', 'ConvWS2d', 'CrossEntropyLoss', 'CrossIterBatchNorm2d', 'DIoULoss', 'DeformConv2d',
    'ExpMomentumEMA', 'FilterResponseNorm2d', 'FocalLoss', 'GIoULoss', 'IoULoss', 'L1Loss', 'ModulatedDeformConv2d',
    'MovingAverageBatchNorm2d', 'SmoothL1Loss', 'SyncBN', 'TLU', 'build_activation_layer', 'build_conv_layer',
    'build_norm_layer', 'build_upsample_layer', 'cbn_state', 'conv_norm', 'conv_stack', 'convert_cbn', 'init_conv',
    'kaiming_normal', 'load_cbn_state', 'pack', 'plan_cbn', 'revert_cbn', 'set_cbn_epoch',
]  # fmt: skip
