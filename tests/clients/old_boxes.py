"""A transform that wraps boxes."""

from mmdet.structures.bbox import HorizontalBoxes, autocast_box_type  # noqa: F401
