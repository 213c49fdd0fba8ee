"""CocoDataset, XMLDataset and VOCDataset, wrappers, the transforms of pipelines, batches of one orientation."""

import mmdet.datasets.mmdet3  # noqa: F401  lets attributes of mmdetection's data set be read; nothing here needs it
from mmdet.datasets import transforms
from mmdet.datasets.base import BaseDetDataset
from mmdet.datasets.coco import CocoDataset
from mmdet.datasets.samplers import AspectRatioBatchSampler
from mmdet.datasets.transforms import *  # noqa: F403  what its __all__ names
from mmdet.datasets.voc import VOCDataset, XMLDataset
from mmdet.datasets.wrappers import ConcatDataset, MultiImageMixDataset, RepeatDataset

__all__ = [
    *transforms.__all__,
    'AspectRatioBatchSampler', 'BaseDetDataset', 'CocoDataset', 'ConcatDataset', 'MultiImageMixDataset',
    'RepeatDataset', 'VOCDataset', 'XMLDataset',
]  # fmt: skip
