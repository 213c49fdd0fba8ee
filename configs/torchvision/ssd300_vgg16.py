# torchvision's ssd300_vgg16; see fasterrcnn_resnet50_fpn.py
_base_ = '../ssd/ssd300_coco.py'

model = dict(
    data_preprocessor=dict(mean=[122.99925, 116.9991, 103.9992]),  # 0.48235, 0.45882, 0.40784 of 255
    backbone=dict(init_cfg=None),
    bbox_head=dict(anchor_generator=dict(clip_sizes=True)),
    test_cfg=dict(min_bbox_size=-1, score_thr=0.01),
)
