_base_ = '../ssd/ssd512_coco.py'
