_base_ = './rpn_r50_fpn_1x.py'

model = dict(
    backbone=dict(
        type='ResNeXt', depth=101, groups=64, base_width=4, init_cfg=dict(checkpoint='open-mmlab://resnext101_64x4d')
    )
)
