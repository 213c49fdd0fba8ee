"""Heads that look at regions of interest."""

from mmdet.models.roi_heads.cascade_roi_head import CascadeRoIHead
from mmdet.models.roi_heads.convfc_bbox_head import (
    BBoxHead,
    ConvFCBBoxHead,
    Shared2FCBBoxHead,
    Shared4Conv1FCBBoxHead,
)
from mmdet.models.roi_heads.fcn_mask_head import FCNMaskHead
from mmdet.models.roi_heads.res_layer import ResLayer
from mmdet.models.roi_heads.roi_layers import DeformRoIPoolPack, ModulatedDeformRoIPoolPack, RoIPool
from mmdet.models.roi_heads.single_level_roi_extractor import SingleRoIExtractor
from mmdet.models.roi_heads.standard_roi_head import StandardRoIHead

__all__ = [
    'BBoxHead', 'CascadeRoIHead', 'ConvFCBBoxHead', 'DeformRoIPoolPack', 'FCNMaskHead', 'ModulatedDeformRoIPoolPack',
    'ResLayer', 'RoIPool', 'Shared2FCBBoxHead', 'Shared4Conv1FCBBoxHead', 'SingleRoIExtractor', 'StandardRoIHead',
]  # fmt: skip
