"""Building blocks: convolution with a norm, the norms by name, and Cross-Iteration Batch Normalization."""

from .cbn import CrossIterBatchNorm2d
from .conv_module import ConvModule
from .norm import BATCH_NORMS, SyncBN, build_norm_layer

__all__ = ['BATCH_NORMS', 'ConvModule', 'CrossIterBatchNorm2d', 'SyncBN', 'build_norm_layer']
