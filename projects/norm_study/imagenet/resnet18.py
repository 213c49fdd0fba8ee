# ResNet-18 for image classification, with one norm everywhere. `study.py` varies norm and batch; alone it is
# `mmdet train projects/norm_study/imagenet/resnet18.py --auto-scale-lr --cfg-options data_root=DIR/`.
_base_ = '../../../configs/_base_/default_runtime.py'
custom_imports = dict(imports=['projects.norm_study.imagenet.parts'], allow_failed_imports=False)

norm_cfg = dict(type='BN')
model = dict(type='NormStudyResNet18', num_classes=1000, norm_cfg=norm_cfg)

data_root = 'data/imagenet/'
train_dataloader = dict(
    collate_fn=dict(type='default_collate'), batch_size=32, num_workers=4, persistent_workers=True, drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='ClassFolders', root=data_root + 'train', size=224, training=True),
)  # fmt: skip
val_dataloader = dict(
    collate_fn=dict(type='default_collate'), batch_size=64, num_workers=4, persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='ClassFolders', root=data_root + 'val', size=224, training=False),
)  # fmt: skip
test_dataloader = val_dataloader
val_evaluator = dict(type='TopAccuracy')
test_evaluator = val_evaluator
val_cfg = dict()
test_cfg = dict()

max_epochs = 100
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=1)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4))
auto_scale_lr = dict(base_batch_size=256)  # images a step, over all processes, to which lr belongs
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[30, 60, 90], gamma=0.1)]
default_hooks = dict(checkpoint=dict(max_keep_ckpts=2, save_best=None))
