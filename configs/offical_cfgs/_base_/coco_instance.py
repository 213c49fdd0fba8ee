# COCO with boxes and masks, 2 images a GPU on 8 GPUs
_base_ = '../../_base_/datasets/coco_instance.py'

train_dataloader = dict(batch_size=2, num_workers=2)
