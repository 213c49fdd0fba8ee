# torchvision's retinanet_resnet50_fpn; see fasterrcnn_resnet50_fpn.py
_base_ = '../retinanet/retinanet_r50_fpn_1x.py'

model = dict(
    backbone=dict(norm_cfg=dict(eps=0.0), init_cfg=None),
    neck=dict(add_extra_convs='on_output', relu_before_extra_convs=True),
    bbox_head=dict(
        anchor_generator=dict(
            _delete_=True,
            type='AnchorGenerator',
            sizes=[[32, 40, 50], [64, 80, 101], [128, 161, 203], [256, 322, 406], [512, 645, 812]],
            ratios=[0.5, 1.0, 2.0],
            strides=[8, 16, 32, 64, 128],
            rounded=True,
            floor_strides=True,
        ),
    ),
    train_cfg=dict(allowed_border=None),
    test_cfg=dict(min_bbox_size=-1, max_per_img=300),
)
