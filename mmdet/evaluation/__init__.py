"""What detections are worth: metrics."""

from mmdet.evaluation.coco import CocoMetric
from mmdet.evaluation.dump import DumpDetResults
from mmdet.evaluation.gathered import GatheredMetric
from mmdet.evaluation.multi_datasets import MultiDatasetsEvaluator
from mmdet.evaluation.voc import VOCMetric

__all__ = ['CocoMetric', 'DumpDetResults', 'GatheredMetric', 'MultiDatasetsEvaluator', 'VOCMetric']
