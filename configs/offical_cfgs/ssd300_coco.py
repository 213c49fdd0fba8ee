_base_ = '../ssd/ssd300_coco.py'
