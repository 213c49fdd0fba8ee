_base_ = './mask_rcnn_r50_fpn_gn_2x.py'

model = dict(backbone=dict(depth=101, init_cfg=dict(checkpoint='open-mmlab://detectron/resnet101_gn')))
