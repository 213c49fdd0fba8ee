"""`BaseDetDataset`: for a data set of one's own that is not a file in COCO's format."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.dataset import BaseDataset

from mmdet.datasets.common import with_class_names
from mmdet.datasets.pipeline import build_steps, check_order
from mmdet.registry import DATASETS


@DATASETS.register_module()
class BaseDetDataset(BaseDataset):
    """mmengine's data set with this project's transforms; a subclass gives the images in `load_data_list`.

    An image is a dict of img_path, img_id, height, width and ``instances``, as in `CocoDataset`. Without a subclass,
    `ann_file` is a JSON file of mmengine's layout, dict(metainfo=dict(classes), data_list=[...]).

    Args:
        pipeline, test_mode and the others: see mmengine's `BaseDataset`.
        backend_args: for the subclass.
    """

    def __init__(self, *args, pipeline: Sequence = (), backend_args: dict | None = None, **kwargs) -> None:
        self.backend_args = backend_args
        steps = build_steps(pipeline)
        if not kwargs.get('test_mode', False):
            check_order(steps)
        super().__init__(*args, pipeline=steps, **kwargs)

    @classmethod
    def _load_metainfo(cls, metainfo: dict | None = None) -> dict:
        return with_class_names(cls, super()._load_metainfo, metainfo)

    def get_cat_ids(self, idx: int) -> list[int]:
        """The labels on an image, for `ClassBalancedDataset`."""
        return [instance['bbox_label'] for instance in self.get_data_info(idx)['instances']]
