# Online hard example mining (arXiv 1604.03540)
_base_ = './faster_rcnn_r50_fpn_1x.py'

model = dict(train_cfg=dict(rcnn=dict(sampler=dict(type='OHEMSampler'))))
