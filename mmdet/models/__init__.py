"""The parts of a detector, one file each, and the detectors built from them."""

from mmdet.models.backbones import ResNet, ResNeXt
from mmdet.models.data_preprocessor import BatchFixedSizePad, DetDataPreprocessor
from mmdet.models.dense_heads import RetinaHead, RPNHead
from mmdet.models.detectors import (
    RPN,
    CascadeRCNN,
    FasterRCNN,
    FastRCNN,
    MaskRCNN,
    RetinaNet,
    SingleStageDetector,
    TwoStageDetector,
)
from mmdet.models.initialize import init_weights
from mmdet.models.necks import BFP, FPN
from mmdet.models.roi_heads import (
    CascadeRoIHead,
    ConvFCBBoxHead,
    FCNMaskHead,
    Shared2FCBBoxHead,
    Shared4Conv1FCBBoxHead,
    SingleRoIExtractor,
    StandardRoIHead,
)
from mmdet.models.task_modules import (
    AnchorGenerator,
    CombinedSampler,
    DeltaXYWHBBoxCoder,
    InstanceBalancedPosSampler,
    IoUBalancedNegSampler,
    MaxIoUAssigner,
    OHEMSampler,
    PseudoSampler,
    RandomSampler,
)

__all__ = [
    'AnchorGenerator',
    'BFP',
    'BatchFixedSizePad',
    'CascadeRCNN',
    'CascadeRoIHead',
    'CombinedSampler',
    'ConvFCBBoxHead',
    'DeltaXYWHBBoxCoder',
    'DetDataPreprocessor',
    'FCNMaskHead',
    'FPN',
    'FastRCNN',
    'FasterRCNN',
    'InstanceBalancedPosSampler',
    'IoUBalancedNegSampler',
    'MaskRCNN',
    'MaxIoUAssigner',
    'OHEMSampler',
    'PseudoSampler',
    'RPN',
    'RPNHead',
    'RandomSampler',
    'ResNeXt',
    'ResNet',
    'RetinaHead',
    'RetinaNet',
    'Shared2FCBBoxHead',
    'Shared4Conv1FCBBoxHead',
    'SingleRoIExtractor',
    'SingleStageDetector',
    'StandardRoIHead',
    'TwoStageDetector',
    'init_weights',
]
