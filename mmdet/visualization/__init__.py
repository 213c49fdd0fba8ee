"""Drawing of data samples."""

from mmdet.visualization.visualizer import DetVisualizer

__all__ = ['DetVisualizer']
