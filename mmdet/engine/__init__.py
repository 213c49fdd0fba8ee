"""Hooks and visualisation around mmengine's Runner."""

from . import hooks, visualizer
from .cbn_hook import CBNHook

__all__ = ['CBNHook', 'hooks', 'visualizer']
