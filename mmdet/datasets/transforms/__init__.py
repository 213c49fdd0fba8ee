"""The pipeline: from a data set's dict to an image and a `DetDataSample`.

Keys that travel through it (h, w: size of the image now; G ground-truth objects, P proposals):

- ``img_path``, ``img_id``, ``instances`` from the data set;
- ``img`` (h, w, 3) uint8 BGR, ``img_shape`` (h, w), ``ori_shape`` (h, w) as read,
  ``scale_factor`` (w, h), ``flip``, ``flip_direction``;
- ``gt_bboxes`` (G, 4) float32 xyxy in pixels, ``gt_bboxes_labels`` (G,) int64, ``gt_ignore_flags`` (G,) bool,
  ``gt_masks`` of length G (`PolygonMasks` or `BitmapMasks`);
- ``proposals`` (P, 4) float32 xyxy in pixels, for Fast R-CNN.

A transform that moves pixels moves boxes and masks with them, and says so by a class attribute, ``changes_geometry =
True``; one that loads boxes or masks by ``loads_annotations = True`` (see `mmdet.datasets.pipeline`). A transform that
returns None rejects the image; the data set then draws another. Random numbers come from numpy's global generator
(torchvision's from torch's), which `mmdet.engine.seeding` seeds for each sample.
"""

from mmdet.datasets.transforms.affine import RandomAffine
from mmdet.datasets.transforms.colour import PhotoMetricDistortion
from mmdet.datasets.transforms.crop import MinIoURandomCrop, RandomCrop
from mmdet.datasets.transforms.filtering import FilterAnnotations
from mmdet.datasets.transforms.flip import RandomFlip
from mmdet.datasets.transforms.formatting import PackDetInputs
from mmdet.datasets.transforms.from_albumentations import Albu
from mmdet.datasets.transforms.from_torchvision import TorchvisionTransform
from mmdet.datasets.transforms.loading import (
    InferencerLoader,
    LoadAnnotations,
    LoadImageFromFile,
    LoadImageFromNDArray,
    LoadProposals,
    ProposalBroadcaster,
)
from mmdet.datasets.transforms.mixing import CopyPaste, Mosaic
from mmdet.datasets.transforms.pad import Expand, Pad
from mmdet.datasets.transforms.resize import FixShapeResize, RandomChoiceResize, RandomResize, Resize
from mmdet.datasets.transforms.test_time_aug import TestTimeAug

__all__ = [
    'Albu',
    'CopyPaste',
    'Expand',
    'FilterAnnotations',
    'FixShapeResize',
    'InferencerLoader',
    'LoadAnnotations',
    'LoadImageFromFile',
    'LoadImageFromNDArray',
    'LoadProposals',
    'MinIoURandomCrop',
    'Mosaic',
    'PackDetInputs',
    'Pad',
    'PhotoMetricDistortion',
    'ProposalBroadcaster',
    'RandomAffine',
    'RandomChoiceResize',
    'RandomCrop',
    'RandomFlip',
    'RandomResize',
    'Resize',
    'TestTimeAug',
    'TorchvisionTransform',
]
