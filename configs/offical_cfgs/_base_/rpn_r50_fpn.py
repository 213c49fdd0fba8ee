# RPN with the release's loss, assigner and proposals
_base_ = '../../_base_/models/rpn_r50_fpn.py'

model = dict(
    rpn_head=dict(loss_bbox=dict(type='SmoothL1Loss', beta=1 / 9)),
    train_cfg=dict(rpn=dict(allowed_border=0)),
    test_cfg=dict(rpn=dict(max_per_img=2000)),
)
