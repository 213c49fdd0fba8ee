"""Other projects' weights: recognise, convert, explain (see docs/compatibility.md)."""

from mmdet.checkpoints.formats import Converted, convert, to_torchvision
from mmdet.checkpoints.load import (
    adapt_config,
    convert_for,
    load_checkpoint,
    needs_legacy_options,
    num_classes_of,
)

__all__ = [
    'Converted',
    'adapt_config',
    'convert',
    'convert_for',
    'load_checkpoint',
    'needs_legacy_options',
    'num_classes_of',
    'to_torchvision',
]
