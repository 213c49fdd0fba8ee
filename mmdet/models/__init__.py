"""The parts of a detector, one file each, and the detectors that are built of them."""

from .anchors import AnchorGenerator
from .assign import MaxIoUAssigner, PseudoSampler, RandomSampler
from .bbox_head import ConvFCBBoxHead, Shared2FCBBoxHead, Shared4Conv1FCBBoxHead
from .bfp import BFP
from .box_coder import DeltaXYWHBBoxCoder
from .cascade_roi_head import CascadeRoIHead
from .fpn import FPN
from .mask_head import FCNMaskHead
from .one_stage import RPN, RetinaNet
from .preprocess import BatchFixedSizePad, DetDataPreprocessor
from .resnet import ResNet, ResNeXt
from .retina_head import RetinaHead
from .roi_extractor import SingleRoIExtractor
from .roi_head import StandardRoIHead
from .rpn_head import RPNHead
from .samplers import CombinedSampler, InstanceBalancedPosSampler, IoUBalancedNegSampler, OHEMSampler
from .two_stage import CascadeRCNN, FasterRCNN, FastRCNN, MaskRCNN

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
    'StandardRoIHead',
]
