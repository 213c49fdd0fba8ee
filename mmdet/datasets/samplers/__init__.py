"""Batch samplers."""

from mmdet.datasets.samplers.batch_sampler import AspectRatioBatchSampler

__all__ = ['AspectRatioBatchSampler']
