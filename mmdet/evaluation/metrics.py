"""mmdetection 3's place for metrics."""

from mmdet.config.absent import absent
from mmdet.evaluation import *  # noqa: F403

_COCO = 'write the annotations in COCO format and use CocoMetric'
__path__: list[str] = []  # modules below it: see mmdet.moved
__getattr__ = absent(__name__, LVISMetric=_COCO, OpenImagesMetric=_COCO, CityScapesMetric=_COCO)
