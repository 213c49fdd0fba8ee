# Mask R-CNN on the generated shapes; the backbone is frozen in the first two of eight epochs
_base_ = '../../configs/demo/mask_rcnn_r18_fpn_cbn_shapes.py'

custom_imports = dict(imports=['late_backbone'])
custom_hooks = [*_base_.custom_hooks, dict(type='LateBackboneHook', epochs=2)]
find_unused_parameters = True  # of several processes: the frozen ones get no gradient
