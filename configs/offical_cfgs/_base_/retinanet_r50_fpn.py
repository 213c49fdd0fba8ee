# RetinaNet with the release's loss
_base_ = '../../_base_/models/retinanet_r50_fpn.py'

model = dict(bbox_head=dict(loss_bbox=dict(type='SmoothL1Loss', beta=0.11)))
