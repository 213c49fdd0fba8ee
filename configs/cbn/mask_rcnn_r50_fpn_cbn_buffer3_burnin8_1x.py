# The paper's CBN. On the detectors measured here it was not better than BN or GN (projects/norm_study/README.md):
# start with GN (*_gn_1x.py). At one image a step train *_cbn_full_gradient_1x.py beside it; at two or more BN.
_base_ = './mask_rcnn_r50_fpn_1x.py'

norm_cfg = dict(type='CBN', buffer_num=3, burnin=8)
model = dict(
    neck=dict(norm_cfg=norm_cfg),
    roi_head=dict(bbox_head=dict(norm_cfg=norm_cfg), mask_head=dict(norm_cfg=norm_cfg)),
)
