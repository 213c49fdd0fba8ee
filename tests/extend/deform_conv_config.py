# Mask R-CNN on the generated shapes, with deformable convolutions in the whole backbone
_base_ = '../../configs/demo/mask_rcnn_r18_fpn_cbn_shapes.py'

custom_imports = dict(imports=['deform_conv'])
model = dict(backbone=dict(conv_cfg=dict(type='DeformConv')))
