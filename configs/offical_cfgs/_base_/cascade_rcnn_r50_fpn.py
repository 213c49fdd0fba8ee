# Cascade R-CNN with the release's RoIAlign, assigners and proposals
_base_ = '../../_base_/models/cascade_rcnn_r50_fpn.py'

model = dict(
    roi_head=dict(
        bbox_roi_extractor=dict(roi_layer=dict(sampling_ratio=2)),
    ),
    train_cfg=dict(
        rpn=dict(allowed_border=0),
        rcnn=[
            dict(
                assigner=dict(
                    type='MaxIoUAssigner', pos_iou_thr=iou, neg_iou_thr=iou, min_pos_iou=iou, ignore_iof_thr=-1
                ),
                sampler=dict(
                    type='RandomSampler', num=512, pos_fraction=0.25, neg_pos_ub=-1, add_gt_as_proposals=True
                ),
                mask_size=28,  # of the mask head, where there is one
            )
            for iou in (0.5, 0.6, 0.7)
        ],
    ),
    test_cfg=dict(rpn=dict(nms_pre=2000, max_per_img=2000)),
)
