"""What data sets, models and metrics pass to one another: data samples, plain targets, and masks."""

from mmdet.structures.masks import BitmapMasks, PolygonMasks, masks_from_coco
from mmdet.structures.rle_masks import DetectedInstances, RLEMasks
from mmdet.structures.sample import DetDataSample, OptSampleList, SampleList, Target

__all__ = [
    'BitmapMasks', 'DetDataSample', 'DetectedInstances', 'OptSampleList', 'PolygonMasks', 'RLEMasks', 'SampleList',
    'Target',
    'masks_from_coco',
]  # fmt: skip
