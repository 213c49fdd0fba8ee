"""The parts of a detector, one class a file where it can be, and the detectors built from them."""

import mmdet.models.mmdet3  # noqa: F401  lets attributes of mmdetection's parts be read; nothing here needs it
from mmdet.models import backbones, dense_heads, detectors, necks, roi_heads, task_modules
from mmdet.models.backbones import *  # noqa: F403
from mmdet.models.data_preprocessor import BatchFixedSizePad, DetDataPreprocessor
from mmdet.models.dense_heads import *  # noqa: F403
from mmdet.models.detectors import *  # noqa: F403
from mmdet.models.initialize import init_weights
from mmdet.models.necks import *  # noqa: F403
from mmdet.models.roi_heads import *  # noqa: F403
from mmdet.models.task_modules import *  # noqa: F403
from mmdet.models.tta import DetTTAModel

__all__ = ['BatchFixedSizePad', 'DetDataPreprocessor', 'DetTTAModel', 'init_weights']
for _room in (backbones, dense_heads, detectors, necks, roi_heads, task_modules):
    __all__ += _room.__all__
