"""The one door for weights: files of this and other projects are opened, recognised, converted, fitted and written.

reading.py opens a file, once; formats.py recognises its project (one file each: legacy.py, torchvision.py,
detectron2.py, efficientnet_pytorch.py); config.py finds the config in it; fitting.py compares it with a model; load.py
does all of this; plain.py is what is written; pretrained.py knows addresses. See docs/compatibility.md.
"""

from mmdet.checkpoints.config import config_of, is_checkpoint
from mmdet.checkpoints.fitting import fit_weights
from mmdet.checkpoints.formats import convert
from mmdet.checkpoints.load import (
    adapt_config,
    backbone_weights,
    keys_that_fit,
    load_checkpoint,
    needs_legacy_options,
    num_classes_of,
    weights_for,
    weights_for_part,
)
from mmdet.checkpoints.names import Converted
from mmdet.checkpoints.pretrained import NoDownload, load_pretrained
from mmdet.checkpoints.reading import Checkpoint, existing_file, read_checkpoint
from mmdet.checkpoints.torchvision import to_torchvision

__all__ = [
    'Checkpoint',
    'Converted',
    'NoDownload',
    'adapt_config',
    'backbone_weights',
    'config_of',
    'convert',
    'existing_file',
    'fit_weights',
    'is_checkpoint',
    'keys_that_fit',
    'load_checkpoint',
    'load_pretrained',
    'needs_legacy_options',
    'num_classes_of',
    'read_checkpoint',
    'to_torchvision',
    'weights_for',
    'weights_for_part',
]
