from .sample import DetDataSample, Target

__all__ = ['DetDataSample', 'Target']
