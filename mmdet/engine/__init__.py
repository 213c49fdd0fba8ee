"""Hooks and visualisation around mmengine's Runner."""

from .cbn_hook import CBNHook

__all__ = ['CBNHook']
