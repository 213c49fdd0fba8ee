"""Object detection with Cross-Iteration Batch Normalization (arXiv 2002.05712)."""

import mmdet.moved  # noqa: F401  lets modules of mmdetection be found
from mmdet.version import __version__

__all__ = ['__version__']
