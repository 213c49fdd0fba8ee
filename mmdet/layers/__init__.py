"""Building blocks: convolution with a norm, the norms by name, and Cross-Iteration Batch Normalization."""

from .batch_renorm import BatchRenorm
from .cbn import CrossIterBatchNorm2d
from .conv_module import ConvModule, conv_norm
from .losses import CrossEntropyLoss, L1Loss, SmoothL1Loss
from .norm import BATCH_NORMS, SyncBN, build_norm_layer

__all__ = [
    'BATCH_NORMS',
    'BatchRenorm',
    'ConvModule',
    'CrossEntropyLoss',
    'CrossIterBatchNorm2d',
    'L1Loss',
    'SmoothL1Loss',
    'SyncBN',
    'build_norm_layer',
    'conv_norm',
]
