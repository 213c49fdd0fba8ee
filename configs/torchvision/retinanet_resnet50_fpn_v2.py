# torchvision's retinanet_resnet50_fpn_v2: GroupNorm in the head, P6 from C5, GIoU loss.
_base_ = './retinanet_resnet50_fpn.py'

model = dict(
    backbone=dict(norm_cfg=dict(eps=1e-5)),
    neck=dict(add_extra_convs='on_input'),
    bbox_head=dict(
        norm_cfg=dict(type='GN', num_groups=32),
        reg_decoded_bbox=True,
        loss_bbox=dict(_delete_=True, type='GIoULoss', eps=1e-7),
    ),
)
