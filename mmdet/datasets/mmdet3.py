"""Attributes of mmdetection 3's `CocoDataset`, for subclasses that were written for it; nothing here reads them."""

from collections.abc import Callable
from typing import Any

from mmdet.config.errors import UserError
from mmdet.datasets.api_wrappers import COCO
from mmdet.datasets.coco import CocoDataset


class _NoAttribute(UserError, AttributeError):
    """An attribute of mmdetection's class that ours lacks."""


class _Found:
    """Made when it is asked for; a subclass may set the attribute."""

    def __init__(self, read: Callable[[Any], Any]) -> None:
        self.read = read

    def __get__(self, dataset: Any, owner: type) -> Any:
        return self.read(dataset)


def _no_index(dataset: Any) -> None:
    raise _NoAttribute('CocoDataset keeps no coco: mmdet.datasets.api_wrappers.COCO(dataset.ann_file) is the index of '
                       'its file (docs/compatibility.md)')


CocoDataset.COCOAPI = COCO
CocoDataset.ANN_ID_UNIQUE = True
CocoDataset.coco = _Found(_no_index)
CocoDataset.cat_img_map = _Found(lambda dataset: COCO(dataset.ann_file).cat_img_map)
