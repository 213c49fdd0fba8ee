"""CocoDataset, the transforms of its pipeline, and batches of pictures that lie the same way."""

from mmdet.datasets.coco import CocoDataset
from mmdet.datasets.samplers import AspectRatioBatchSampler
from mmdet.datasets.transforms.geometry import (
    FilterAnnotations,
    PackDetInputs,
    Pad,
    RandomChoiceResize,
    RandomCrop,
    RandomFlip,
    RandomResize,
    Resize,
)
from mmdet.datasets.transforms.loading import LoadAnnotations, LoadImageFromFile, LoadProposals, ProposalBroadcaster

__all__ = [
    'AspectRatioBatchSampler',
    'CocoDataset',
    'FilterAnnotations',
    'LoadAnnotations',
    'LoadImageFromFile',
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
