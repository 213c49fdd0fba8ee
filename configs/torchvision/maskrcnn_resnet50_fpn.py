# torchvision's maskrcnn_resnet50_fpn; see fasterrcnn_resnet50_fpn.py
_base_ = '../mask_rcnn/mask_rcnn_r50_fpn_1x.py'

model = dict(
    backbone=dict(norm_cfg=dict(eps=0.0), init_cfg=None),
    rpn_head=dict(
        anchor_generator=dict(rounded=True, floor_strides=True),
        loss_bbox=dict(_delete_=True, type='SmoothL1Loss', beta=1 / 9),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(roi_layer=dict(sampling_ratio=2, aligned=False)),
        bbox_head=dict(loss_bbox=dict(_delete_=True, type='SmoothL1Loss', beta=1 / 9)),
        mask_roi_extractor=dict(roi_layer=dict(sampling_ratio=2, aligned=False)),
    ),
    train_cfg=dict(
        rpn=dict(allowed_border=None),
        rpn_proposal=dict(max_per_img=2000, min_bbox_size=1e-3),
        rcnn=dict(assigner=dict(match_low_quality=False)),
    ),
    test_cfg=dict(rpn=dict(min_bbox_size=1e-3), rcnn=dict(min_bbox_size=1e-2)),
)
