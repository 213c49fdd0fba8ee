# Mask R-CNN on the generated shapes: ConvNeXt backbone, CBN in neck and heads
_base_ = '../../configs/demo/mask_rcnn_r18_fpn_cbn_shapes.py'

custom_imports = dict(imports=['convnext'])
model = dict(
    backbone=dict(_delete_=True, type='ConvNeXt', name='convnext_tiny'),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
