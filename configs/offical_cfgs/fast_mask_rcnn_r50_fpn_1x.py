# Needs the proposals of an RPN, see configs/fast_rcnn/fast_rcnn_r50_fpn_1x.py
_base_ = [
    './_base_/fast_mask_rcnn_r50_fpn.py',
    './_base_/coco_instance.py',
    '../_base_/schedules/schedule_1x.py',
    '../_base_/default_runtime.py',
]

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='LoadProposals',
        proposal_file='data/coco/proposals/rpn_r50_fpn_1x_train2017.proposal.json',
        num_max_proposals=1000,
    ),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(1333, 800), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='LoadProposals',
        proposal_file='data/coco/proposals/rpn_r50_fpn_1x_val2017.proposal.json',
        num_max_proposals=1000,
    ),
    dict(type='Resize', scale=(1333, 800), keep_ratio=True),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
