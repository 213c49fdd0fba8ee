"""CocoDataset, XMLDataset and VOCDataset, wrappers, the transforms of pipelines, batches of one orientation."""

import mmdet.datasets.mmdet3  # noqa: F401  lets attributes of mmdetection's data set be read; nothing here needs it
from mmdet.datasets.base import BaseDetDataset
from mmdet.datasets.coco import CocoDataset
from mmdet.datasets.samplers import AspectRatioBatchSampler
from mmdet.datasets.transforms import (
    Albu,
    CopyPaste,
    Expand,
    FilterAnnotations,
    FixShapeResize,
    InferencerLoader,
    LoadAnnotations,
    LoadImageFromFile,
    LoadImageFromNDArray,
    LoadProposals,
    MinIoURandomCrop,
    Mosaic,
    PackDetInputs,
    Pad,
    PhotoMetricDistortion,
    ProposalBroadcaster,
    RandomAffine,
    RandomChoiceResize,
    RandomCrop,
    RandomFlip,
    RandomResize,
    Resize,
    TorchvisionTransform,
)
from mmdet.datasets.voc import VOCDataset, XMLDataset
from mmdet.datasets.wrappers import ConcatDataset, MultiImageMixDataset, RepeatDataset

__all__ = [
    'Albu',
    'AspectRatioBatchSampler',
    'BaseDetDataset',
    'CocoDataset',
    'ConcatDataset',
    'CopyPaste',
    'Expand',
    'FilterAnnotations',
    'FixShapeResize',
    'InferencerLoader',
    'LoadAnnotations',
    'LoadImageFromFile',
    'LoadImageFromNDArray',
    'LoadProposals',
    'MinIoURandomCrop',
    'Mosaic',
    'MultiImageMixDataset',
    'PackDetInputs',
    'Pad',
    'PhotoMetricDistortion',
    'ProposalBroadcaster',
    'RandomAffine',
    'RandomChoiceResize',
    'RandomCrop',
    'RandomFlip',
    'RandomResize',
    'RepeatDataset',
    'Resize',
    'TorchvisionTransform',
    'VOCDataset',
    'XMLDataset',
]
