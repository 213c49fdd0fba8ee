# Mask R-CNN on the map of stage 3; boxes and masks share stage 4, which is computed for each RoI
_base_ = './faster_rcnn_r50_caffe_c4.py'

model = dict(
    type='MaskRCNN',
    roi_head=dict(
        mask_head=dict(type='FCNMaskHead', num_convs=0, in_channels=2048, conv_out_channels=256, num_classes=80)
    ),
    train_cfg=dict(rcnn=dict(assigner=dict(match_low_quality=False), mask_size=14)),
    test_cfg=dict(rcnn=dict(mask_thr_binary=0.5)),
)
