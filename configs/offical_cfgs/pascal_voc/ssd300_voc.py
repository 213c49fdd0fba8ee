_base_ = '../../pascal_voc/ssd300_voc.py'
