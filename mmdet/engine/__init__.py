from . import hooks, visualizer

__all__ = ['hooks', 'visualizer']
