# Baseline of the method: no norm in neck and heads, backbone norm frozen. The other configs differ in norm_cfg alone.
_base_ = [
    '../_base_/models/faster_rcnn_r50_fpn.py',
    '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/schedule_1x.py',
    '../_base_/default_runtime.py',
]

model = dict(roi_head=dict(bbox_head=dict(type='Shared4Conv1FCBBoxHead')))
