"""Other projects' weights: recognise, convert, explain (see docs/compatibility.md)."""

from mmdet.checkpoints.formats import Converted, convert, meta_of, plain_meta, to_torchvision
from mmdet.checkpoints.load import (
    adapt_config,
    backbone_weights,
    convert_for,
    load_checkpoint,
    needs_legacy_options,
    num_classes_of,
)

__all__ = [
    'Converted',
    'adapt_config',
    'backbone_weights',
    'convert',
    'convert_for',
    'load_checkpoint',
    'meta_of',
    'needs_legacy_options',
    'num_classes_of',
    'plain_meta',
    'to_torchvision',
]
