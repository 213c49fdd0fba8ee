"""CocoDataset, the transforms of its pipeline, and batches of images of like orientation."""

from mmdet.datasets.base import BaseDetDataset
from mmdet.datasets.coco import CocoDataset
from mmdet.datasets.samplers import AspectRatioBatchSampler
from mmdet.datasets.transforms import (
    FilterAnnotations,
    InferencerLoader,
    LoadAnnotations,
    LoadImageFromFile,
    LoadImageFromNDArray,
    LoadProposals,
    PackDetInputs,
    Pad,
    ProposalBroadcaster,
    RandomChoiceResize,
    RandomCrop,
    RandomFlip,
    RandomResize,
    Resize,
)

__all__ = [
    'AspectRatioBatchSampler',
    'BaseDetDataset',
    'CocoDataset',
    'FilterAnnotations',
    'InferencerLoader',
    'LoadAnnotations',
    'LoadImageFromFile',
    'LoadImageFromNDArray',
    'LoadProposals',
    'PackDetInputs',
    'Pad',
    'ProposalBroadcaster',
    'RandomChoiceResize',
    'RandomCrop',
    'RandomFlip',
    'RandomResize',
    'Resize',
]
