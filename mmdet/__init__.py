"""Object detection with Cross-Iteration Batch Normalization (arXiv 2002.05712)."""

from mmdet.version import __version__

__all__ = ['__version__']
