"""mmdetection 3's place for what detects in parts of a large image."""

from mmdet.apis.slices import merge_results_by_nms, shift_predictions

__all__ = ['merge_results_by_nms', 'shift_predictions']
