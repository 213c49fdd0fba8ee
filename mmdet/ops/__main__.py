"""`python -m mmdet.ops`: what is compiled and which kernels serve."""

from mmdet.ops.library import describe

print(describe())
