# Fast R-CNN with the release's losses, RoIAlign and assigner
_base_ = '../../_base_/models/fast_rcnn_r50_fpn.py'

model = dict(
    roi_head=dict(
        bbox_roi_extractor=dict(roi_layer=dict(sampling_ratio=2)),
        bbox_head=dict(loss_bbox=dict(type='SmoothL1Loss')),
    ),
    train_cfg=dict(rcnn=dict(assigner=dict(match_low_quality=True))),
)
