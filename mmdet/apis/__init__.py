"""Detect objects from Python."""

from mmdet.apis.det_inferencer import DetInferencer
from mmdet.apis.inference import inference_detector, init_detector
from mmdet.apis.results import DetResult

__all__ = ['DetInferencer', 'DetResult', 'inference_detector', 'init_detector']
