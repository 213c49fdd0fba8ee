from .anchors import AnchorGenerator
from .assign import MaxIoUAssigner, PseudoSampler, RandomSampler
from .bbox_head import ConvFCBBoxHead, Shared2FCBBoxHead, Shared4Conv1FCBBoxHead
from .box_coder import DeltaXYWHBBoxCoder
from .fpn import FPN
from .mask_head import FCNMaskHead
from .preprocess import DetDataPreprocessor
from .resnet import ResNet, ResNeXt
from .roi_extractor import SingleRoIExtractor
from .roi_head import StandardRoIHead
from .rpn_head import RPNHead
from .two_stage import FasterRCNN, MaskRCNN

__all__ = [
    'AnchorGenerator',
    'ConvFCBBoxHead',
    'DeltaXYWHBBoxCoder',
    'DetDataPreprocessor',
    'FCNMaskHead',
    'FPN',
    'FasterRCNN',
    'MaskRCNN',
    'MaxIoUAssigner',
    'PseudoSampler',
    'RPNHead',
    'RandomSampler',
    'ResNeXt',
    'ResNet',
    'Shared2FCBBoxHead',
    'Shared4Conv1FCBBoxHead',
    'SingleRoIExtractor',
    'StandardRoIHead',
]
