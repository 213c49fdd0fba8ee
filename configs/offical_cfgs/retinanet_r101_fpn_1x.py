_base_ = './retinanet_r50_fpn_1x.py'

model = dict(backbone=dict(depth=101, init_cfg=dict(checkpoint='torchvision://resnet101')))
