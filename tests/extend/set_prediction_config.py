# Set prediction on the generated shapes; boxes alone
_base_ = ['../../configs/_base_/datasets/shapes.py', '../../configs/_base_/default_runtime.py']

custom_imports = dict(imports=['set_prediction'])
model = dict(
    type='SetDetector',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    backbone=dict(type='ResNet', depth=18, norm_eval=False),
    bbox_head=dict(type='SetPredictionHead', num_classes=4, in_channels=512),
)
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=50, val_interval=5)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.0003, weight_decay=0.0001),
    clip_grad=dict(max_norm=0.1),
)
