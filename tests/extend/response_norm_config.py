# Mask R-CNN on the generated shapes, with another norm in neck and heads
_base_ = '../../configs/demo/mask_rcnn_r18_fpn_cbn_shapes.py'

custom_imports = dict(imports=['response_norm'])
norm_cfg = dict(_delete_=True, type='FilterResponseNorm')  # in place of CBN and its options
model = dict(
    neck=dict(norm_cfg=norm_cfg),
    roi_head=dict(bbox_head=dict(norm_cfg=norm_cfg), mask_head=dict(norm_cfg=norm_cfg)),
)
