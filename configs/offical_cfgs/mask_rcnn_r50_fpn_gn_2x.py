# GroupNorm everywhere, from Detectron's weights (arXiv 1803.08494)
_base_ = [
    './_base_/mask_rcnn_r50_fpn.py',
    './_base_/coco_instance.py',
    '../_base_/schedules/schedule_2x.py',
    '../_base_/default_runtime.py',
]

norm_cfg = dict(type='GN', num_groups=32)
model = dict(
    data_preprocessor=dict(mean=[102.9801, 115.9465, 122.7717], std=[1.0, 1.0, 1.0], bgr_to_rgb=False),
    backbone=dict(
        norm_cfg=dict(_delete_=True, **norm_cfg), init_cfg=dict(checkpoint='open-mmlab://detectron/resnet50_gn')
    ),
    neck=dict(norm_cfg=norm_cfg),
    roi_head=dict(
        bbox_head=dict(type='Shared4Conv1FCBBoxHead', conv_out_channels=256, norm_cfg=norm_cfg),
        mask_head=dict(norm_cfg=norm_cfg),
    ),
)
