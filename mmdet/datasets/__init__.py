from .coco import CocoDataset
from .samplers import AspectRatioBatchSampler
from .transforms import (
    FilterAnnotations,
    LoadAnnotations,
    LoadImageFromFile,
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
