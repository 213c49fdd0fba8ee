# detectron2's Misc/cascade_mask_rcnn_R_50_FPN; see faster_rcnn_r50_fpn.py. Its one mask head is loaded into
# each of the three here, whose mean is then its output. Without masks: --cfg-options model.roi_head.mask_head=None
_base_ = '../cascade_rcnn/cascade_mask_rcnn_r50_fpn_1x.py'

model = dict(
    data_preprocessor=dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False),
    backbone=dict(style='caffe', init_cfg=None),
    rpn_head=dict(loss_bbox=dict(_delete_=True, type='L1Loss', loss_weight=1.0)),
    roi_head=dict(
        stage_loss_weights=[1, 1, 1],
        bbox_head=[
            dict(
                type='Shared2FCBBoxHead',
                num_classes=80,
                reg_class_agnostic=True,
                bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=[0.1 / k, 0.1 / k, 0.2 / k, 0.2 / k]),
                loss_bbox=dict(type='L1Loss', loss_weight=1.0),
            )
            for k in (1, 2, 3)
        ],
        average='probabilities',
    ),
    train_cfg=dict(rpn=dict(allowed_border=None, assigner=dict(min_pos_iou=0, low_quality_to_best_gt=True))),
)
