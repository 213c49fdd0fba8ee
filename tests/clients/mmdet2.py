"""A script of mmdetection 2."""

from mmdet.core import bbox2result  # noqa: F401
