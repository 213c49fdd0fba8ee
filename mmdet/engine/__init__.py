"""What happens around training: hooks."""

from .precise_bn import PreciseBNHook, precise_statistics

__all__ = ['PreciseBNHook', 'precise_statistics']
