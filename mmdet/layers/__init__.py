"""Building blocks: convolution with a norm, the norms by name, and Cross-Iteration Batch Normalization."""

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
from mmdet.layers.conv import ConvModule, ConvWS2d, build_conv_layer, conv_norm
from mmdet.layers.losses.basic import BalancedL1Loss, CrossEntropyLoss, L1Loss, SmoothL1Loss
from mmdet.layers.losses.focal import FocalLoss
from mmdet.layers.losses.iou import BoundedIoULoss, CIoULoss, DIoULoss, GIoULoss, IoULoss
from mmdet.layers.norm import BATCH_NORMS, SyncBN, build_norm_layer
from mmdet.ops import COMPILED

kernels.ENABLED = COMPILED  # that folder stands alone and cannot ask

__all__ = [
    'BATCH_NORMS',
    'BalancedL1Loss',
    'BatchRenorm',
    'BoundedIoULoss',
    'CIoULoss',
    'ConvModule',
    'ConvWS2d',
    'CrossEntropyLoss',
    'CrossIterBatchNorm2d',
    'DIoULoss',
    'FocalLoss',
    'GIoULoss',
    'IoULoss',
    'L1Loss',
    'SmoothL1Loss',
    'SyncBN',
    'build_conv_layer',
    'build_norm_layer',
    'cbn_state',
    'conv_norm',
    'convert_cbn',
    'load_cbn_state',
    'plan_cbn',
    'revert_cbn',
    'set_cbn_epoch',
]
