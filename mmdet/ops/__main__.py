"""`python -m mmdet.ops`: what is compiled and which kernels serve."""

from .library import describe

print(describe())
