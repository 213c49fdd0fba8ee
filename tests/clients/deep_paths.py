"""Helpers by the paths of mmdetection's own files."""

import torch

from mmdet.models.task_modules.assigners.max_iou_assigner import MaxIoUAssigner
from mmdet.models.task_modules.prior_generators import AnchorGenerator
from mmdet.models.task_modules.samplers import RandomSampler
from mmdet.structures import DetDataSample, OptSampleList, SampleList  # noqa: F401
from mmdet.structures.bbox.transforms import bbox2roi

anchors = AnchorGenerator(strides=[16], ratios=[1.0], scales=[2]).grid_priors([(4, 4)])[0]
objects = torch.tensor([[10.0, 10, 40, 40]])
assigned = MaxIoUAssigner(0.4, 0.3).assign(anchors, objects, objects[:0])
positive, _ = RandomSampler(num=8, pos_fraction=0.5).sample(*assigned)
print(len(positive), tuple(bbox2roi([objects]).shape))
