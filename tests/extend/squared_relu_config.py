# Mask R-CNN on the generated shapes, with squared ReLU after the convolutions of the FPN
_base_ = '../../configs/demo/mask_rcnn_r18_fpn_cbn_shapes.py'

custom_imports = dict(imports=['squared_relu'])
model = dict(neck=dict(act_cfg=dict(type='SquaredReLU')))
