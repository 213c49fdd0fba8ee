"""Hooks and visualisation around mmengine's Runner."""

from . import checkpoint_hooks, cpu, hooks, visualizer
from .cbn_hook import CBNHook
from .precise_bn import PreciseBNHook, precise_statistics

__all__ = ['CBNHook', 'PreciseBNHook', 'checkpoint_hooks', 'cpu', 'hooks', 'precise_statistics', 'visualizer']
