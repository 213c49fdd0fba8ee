# Faster R-CNN on a boxlist file
_base_ = ['../../configs/_base_/models/faster_rcnn_r50_fpn.py', '../../configs/_base_/default_runtime.py']

custom_imports = dict(imports=['boxlist'])
model = dict(backbone=dict(depth=18, init_cfg=None), neck=dict(in_channels=[64, 128, 256, 512]))
model['roi_head'] = dict(bbox_head=dict(num_classes=4))

data_root = 'data/boxlist/'
metainfo = dict(classes=('circle', 'square', 'triangle', 'star'))
train_dataloader = dict(
    batch_size=2,
    num_workers=2,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='BoxlistDataset',
        data_root=data_root,
        ann_file='train.txt',
        data_prefix=dict(img_path='images'),
        metainfo=metainfo,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='Resize', scale=(320, 320), keep_ratio=True),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackDetInputs'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='BoxlistDataset',
        data_root=data_root,
        ann_file='val.txt',
        data_prefix=dict(img_path='images'),
        metainfo=metainfo,
        test_mode=True,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(320, 320), keep_ratio=True),
            dict(type='PackDetInputs'),
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='BoxRecall', ann_file=data_root + 'val.txt')
test_evaluator = val_evaluator

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.0025, momentum=0.9))
default_hooks = dict(checkpoint=dict(save_best='boxlist/recall', rule='greater'))
