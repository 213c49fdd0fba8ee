"""Hooks of a run, each registered under its class's name."""

from mmdet.engine.hooks import checkpoint, run
from mmdet.engine.hooks.cbn import CBNHook
from mmdet.engine.hooks.precise_bn import PreciseBNHook, precise_statistics

__all__ = ['CBNHook', 'PreciseBNHook', 'checkpoint', 'precise_statistics', 'run']
