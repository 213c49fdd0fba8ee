"""Building blocks: convolution with a norm, the norms by name, and Cross-Iteration Batch Normalization."""

from ..ops import COMPILED
from . import cbn
from .batch_renorm import BatchRenorm
from .cbn import CrossIterBatchNorm2d, cbn_state, load_cbn_state, set_cbn_epoch
from .conv_module import ConvModule, ConvWS2d, build_conv_layer, conv_norm
from .convert import convert_cbn, plan_cbn, revert_cbn
from .focal_loss import FocalLoss
from .iou_losses import BoundedIoULoss, CIoULoss, DIoULoss, GIoULoss, IoULoss
from .losses import BalancedL1Loss, CrossEntropyLoss, L1Loss, SmoothL1Loss
from .norm import BATCH_NORMS, SyncBN, build_norm_layer

cbn.COMPILED = COMPILED  # that file stands alone and cannot ask

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
