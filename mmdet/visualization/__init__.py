"""Drawing of data samples."""

from mmdet.visualization.visualizer import DetVisualizer, draw_instances

DetLocalVisualizer = DetVisualizer  # mmdetection's name

__all__ = ['DetLocalVisualizer', 'DetVisualizer', 'draw_instances']
