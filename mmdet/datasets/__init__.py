"""CocoDataset, XMLDataset and VOCDataset, wrappers, the transforms of pipelines, batches of one orientation."""

from mmdet.datasets.base import BaseDetDataset
from mmdet.datasets.coco import CocoDataset
from mmdet.datasets.samplers import AspectRatioBatchSampler
from mmdet.datasets.transforms import (
    Expand,
    FilterAnnotations,
    InferencerLoader,
    LoadAnnotations,
    LoadImageFromFile,
    LoadImageFromNDArray,
    LoadProposals,
    MinIoURandomCrop,
    PackDetInputs,
    Pad,
    PhotoMetricDistortion,
    ProposalBroadcaster,
    RandomChoiceResize,
    RandomCrop,
    RandomFlip,
    RandomResize,
    Resize,
    TorchvisionTransform,
)
from mmdet.datasets.voc import VOCDataset, XMLDataset
from mmdet.datasets.wrappers import ConcatDataset, RepeatDataset

__all__ = [
    'AspectRatioBatchSampler',
    'BaseDetDataset',
    'CocoDataset',
    'ConcatDataset',
    'Expand',
    'FilterAnnotations',
    'InferencerLoader',
    'LoadAnnotations',
    'LoadImageFromFile',
    'LoadImageFromNDArray',
    'LoadProposals',
    'MinIoURandomCrop',
    'PackDetInputs',
    'Pad',
    'PhotoMetricDistortion',
    'ProposalBroadcaster',
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
