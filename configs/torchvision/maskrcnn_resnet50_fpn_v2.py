# torchvision's maskrcnn_resnet50_fpn_v2: BatchNorm in neck and heads, two RPN convolutions, 4 conv + 1 fc box head.
_base_ = './maskrcnn_resnet50_fpn.py'

norm_cfg = dict(type='BN')
model = dict(
    backbone=dict(norm_cfg=dict(eps=1e-5)),
    neck=dict(norm_cfg=norm_cfg),
    rpn_head=dict(num_convs=2),
    roi_head=dict(
        bbox_head=dict(type='Shared4Conv1FCBBoxHead', norm_cfg=norm_cfg),
        mask_head=dict(norm_cfg=norm_cfg),
    ),
)
