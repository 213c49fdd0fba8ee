# What the method's released layer computed when its table was published: BatchNorm of each process's own images, since
# the branch that pools and compensates was never reached. See docs/cbn.md, "The public record".
_base_ = './mask_rcnn_r50_fpn_1x.py'

norm_cfg = dict(type='BN')
model = dict(
    neck=dict(norm_cfg=norm_cfg),
    roi_head=dict(bbox_head=dict(norm_cfg=norm_cfg), mask_head=dict(norm_cfg=norm_cfg)),
)
