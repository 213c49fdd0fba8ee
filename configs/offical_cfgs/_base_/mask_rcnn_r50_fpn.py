# Mask R-CNN with the release's losses, RoIAlign, assigners and proposals
_base_ = '../../_base_/models/mask_rcnn_r50_fpn.py'

model = dict(
    rpn_head=dict(loss_bbox=dict(type='SmoothL1Loss', beta=1 / 9)),
    roi_head=dict(
        bbox_roi_extractor=dict(roi_layer=dict(sampling_ratio=2)),
        bbox_head=dict(loss_bbox=dict(type='SmoothL1Loss')),
        mask_roi_extractor=dict(roi_layer=dict(sampling_ratio=2)),
    ),
    train_cfg=dict(
        rpn=dict(allowed_border=0),
        rpn_proposal=dict(max_per_img=2000),
        rcnn=dict(assigner=dict(match_low_quality=True)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=2000, max_per_img=2000)),
)
