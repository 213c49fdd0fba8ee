"""Steps of a pipeline."""

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
    'FilterAnnotations', 'LoadAnnotations', 'LoadImageFromFile', 'LoadProposals', 'PackDetInputs', 'Pad',
    'ProposalBroadcaster', 'RandomChoiceResize', 'RandomCrop', 'RandomFlip', 'RandomResize', 'Resize',
]
