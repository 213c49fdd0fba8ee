# Needs proposals for train2017 and val2017, written by an RPN:
#   python tools/test.py configs/rpn/rpn_r50_fpn_1x.py RPN.pth --format-only --cfg-options \
#     test_evaluator.outfile_prefix=proposals/rpn_r50_fpn_1x_val2017
_base_ = [
    '../_base_/models/fast_rcnn_r50_fpn.py',
    '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/schedule_1x.py',
    '../_base_/default_runtime.py',
]

train_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(
        type='LoadProposals', proposal_file='proposals/rpn_r50_fpn_1x_train2017.proposal.json', num_max_proposals=2000
    ),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(1333, 800), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(
        type='LoadProposals', proposal_file='proposals/rpn_r50_fpn_1x_val2017.proposal.json', num_max_proposals=1000
    ),
    dict(type='Resize', scale=(1333, 800), keep_ratio=True),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
