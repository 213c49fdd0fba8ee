_base_ = [
    './_base_/retinanet_r50_fpn.py',
    './_base_/coco_detection.py',
    '../_base_/schedules/schedule_1x.py',
    '../_base_/default_runtime.py',
]

optim_wrapper = dict(optimizer=dict(lr=0.01))
