# The detector of the detection study: Mask R-CNN, EfficientNet-Lite0 with ImageNet's weights, a thin FPN. An ordinary
# config: `mmdet train` runs it with data_root=DIR/facade/ and the weights in checkpoints/ (docs/models.md). The study
# varies the norm of neck and heads, the batch and the learning rate.
_base_ = '../../../configs/efficientnet/mask_rcnn_efficientnet_lite0_fpn_cbn.py'

classes = (
    'balcony-fence', 'car', 'facade', 'fence', 'non-building-infrastructure', 'shop', 'street',
    'traffic-infrastructure', 'vegetation', 'window',
)  # fmt: skip
norm_cfg = dict(_delete_=True, type='GN', num_groups=8)
strides = [8, 16, 32]
extractor = dict(roi_layer=dict(sampling_ratio=1), out_channels=64, featmap_strides=strides)
model = dict(
    backbone=dict(out_indices=(-3, -2, -1), frozen_stages=5, norm_cfg=dict(type='BN', requires_grad=False)),
    neck=dict(out_channels=64, num_outs=5, norm_cfg=norm_cfg),
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[2.5], strides=[*strides, 64, 128])),
    roi_head=dict(
        bbox_roi_extractor=extractor,
        bbox_head=dict(in_channels=64, conv_out_channels=64, fc_out_channels=256, norm_cfg=norm_cfg),
        mask_roi_extractor=extractor,
        mask_head=dict(in_channels=64, conv_out_channels=64, upsample_cfg=dict(type=None), norm_cfg=norm_cfg),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=400, max_per_img=200),
        rcnn=dict(sampler=dict(num=48), mask_size=14),  # without upsampling, which is a third of a step
    ),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=150)),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(512, 512), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(512, 512), keep_ratio=True),
    dict(type='PackDetInputs'),
]
data_root = 'data/facade/'
metainfo = dict(classes=classes)
train_dataloader = dict(
    batch_size=2,
    dataset=dict(
        data_root=data_root, ann_file='train/instances.json', data_prefix=dict(img='train/images/'),
        metainfo=metainfo, pipeline=train_pipeline,
    ),
)  # fmt: skip
val_dataloader = dict(
    dataset=dict(
        data_root=data_root, ann_file='val/instances.json', data_prefix=dict(img='val/images/'),
        metainfo=metainfo, pipeline=test_pipeline,
    ),
)  # fmt: skip
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'val/instances.json', metric=['bbox', 'segm'])
test_evaluator = val_evaluator

epochs = 6
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=0.003, weight_decay=0.05, fused=True), clip_grad=dict(max_norm=35))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=epochs, T_max=epochs, convert_to_iter_based=True),
]
