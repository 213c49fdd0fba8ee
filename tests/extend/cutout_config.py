# Mask R-CNN on the generated shapes, with Cutout before the end of the training pipeline
_base_ = '../../configs/demo/mask_rcnn_r18_fpn_cbn_shapes.py'

custom_imports = dict(imports=['cutout'])
train_pipeline = [*_base_.train_pipeline[:-1], dict(type='Cutout', count=3), _base_.train_pipeline[-1]]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
