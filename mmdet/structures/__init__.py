"""What data sets, models and metrics pass to one another: data samples, plain targets, and masks."""

from mmdet.structures.masks import BitmapMasks, PolygonMasks, masks_from_coco
from mmdet.structures.rle_masks import RLEMasks
from mmdet.structures.sample import DetDataSample, Target

__all__ = ['BitmapMasks', 'DetDataSample', 'PolygonMasks', 'RLEMasks', 'Target', 'masks_from_coco']
