"""Detect objects from Python."""

from mmdet.apis.inference import inference_detector, init_detector

__all__ = ['inference_detector', 'init_detector']
