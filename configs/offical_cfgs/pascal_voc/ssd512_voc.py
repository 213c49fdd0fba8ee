_base_ = '../../pascal_voc/ssd512_voc.py'
