# Modulated deformable convolutions in the last three stages (arXiv 1811.11168)
_base_ = '../faster_rcnn_r50_fpn_1x.py'

model = dict(
    backbone=dict(
        dcn=dict(type='DCNv2', deform_groups=1, fallback_on_stride=False), stage_with_dcn=(False, True, True, True)
    )
)
