# CBN with its full gradient, without burn-in: above the paper's form beyond the spread wherever the two differed
# (projects/norm_study/imagenet.md). Published figures are of the paper's, *_cbn_buffer3_burnin8_1x.py.
_base_ = './faster_rcnn_r50_fpn_1x.py'

norm_cfg = dict(type='CBN', buffer_num=3, full_gradient=True)
model = dict(
    neck=dict(norm_cfg=norm_cfg),
    roi_head=dict(bbox_head=dict(norm_cfg=norm_cfg)),
)
