# The detection study's second data set: the same detector on nuclei_dsb2018, whose images are padded to one size.
_base_ = 'mask_rcnn_efficientnet_lite0_fpn.py'

classes = ('nucleus',)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(512, 512), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='Pad', size=(512, 512)),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(512, 512), keep_ratio=True),
    dict(type='Pad', size=(512, 512)),
    dict(type='PackDetInputs'),
]
data_root = 'data/nuclei_dsb2018/'
metainfo = dict(classes=classes)
train_dataloader = dict(dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'val/instances.json')
test_evaluator = val_evaluator
