# detectron2's COCO-Detection/faster_rcnn_R_50_FPN: BGR images not divided by a standard deviation, stride in the first
# convolution of a block, all anchors take part in training, and each object's best anchors are positive whatever their
# overlap. To test a file of its model zoo, or train from one:
#   python tools/test.py configs/detectron2/faster_rcnn_r50_fpn.py model_final.pkl --eval bbox
_base_ = '../faster_rcnn/faster_rcnn_r50_fpn_1x.py'

model = dict(
    data_preprocessor=dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False),
    backbone=dict(style='caffe', init_cfg=None),
    train_cfg=dict(rpn=dict(allowed_border=None, assigner=dict(min_pos_iou=0, low_quality_to_best_gt=True))),
)
