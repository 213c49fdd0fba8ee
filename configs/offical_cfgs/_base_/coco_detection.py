# COCO with boxes, 2 images a GPU on 8 GPUs
_base_ = '../../_base_/datasets/coco_detection.py'

train_dataloader = dict(batch_size=2, num_workers=2)
