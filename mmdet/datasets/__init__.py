"""CocoDataset, the transforms of its pipeline, and batches of pictures that lie the same way."""

from .coco import CocoDataset
from .loading import LoadAnnotations, LoadImageFromFile, LoadProposals, ProposalBroadcaster
from .samplers import AspectRatioBatchSampler
from .transforms import (
    FilterAnnotations,
    PackDetInputs,
    Pad,
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
