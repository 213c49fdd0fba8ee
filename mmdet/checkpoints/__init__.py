"""Other projects' weights: recognise, convert, explain (see docs/compatibility.md)."""

from mmdet.checkpoints.formats import Converted, convert, to_torchvision

__all__ = ['Converted', 'convert', 'to_torchvision']
