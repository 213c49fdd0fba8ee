# detectron2's COCO-Detection/retinanet_R_50_FPN; see faster_rcnn_r50_fpn.py
_base_ = '../retinanet/retinanet_r50_fpn_1x.py'

model = dict(
    data_preprocessor=dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False),
    backbone=dict(style='caffe', init_cfg=None),
    neck=dict(relu_before_extra_convs=True),
    train_cfg=dict(allowed_border=None, assigner=dict(low_quality_to_best_gt=True)),
)
