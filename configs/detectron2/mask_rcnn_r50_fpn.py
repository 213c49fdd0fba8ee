# detectron2's COCO-InstanceSegmentation/mask_rcnn_R_50_FPN; see faster_rcnn_r50_fpn.py
_base_ = '../mask_rcnn/mask_rcnn_r50_fpn_1x.py'

model = dict(
    data_preprocessor=dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False),
    backbone=dict(style='caffe', init_cfg=None),
    train_cfg=dict(
        rpn=dict(allowed_border=None, assigner=dict(min_pos_iou=0, low_quality_to_best_gt=True)),
        rcnn=dict(assigner=dict(match_low_quality=False)),
    ),
)
