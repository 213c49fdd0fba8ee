"""A data set of mmdetection 2, with its classes."""

from mmdet.datasets import CocoDataset


class Shapes(CocoDataset):
    CLASSES = ('circle', 'square', 'triangle', 'star')


Shapes(ann_file='shapes/annotations/instances_train.json', data_prefix=dict(img='shapes/train'))
