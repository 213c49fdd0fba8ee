"""mmengine's wrappers of data sets, where detection needs more of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine import dataset as mmengine_dataset

from mmdet.config.errors import UserError, one_line
from mmdet.registry import DATASETS


@DATASETS.register_module()
class ConcatDataset(mmengine_dataset.ConcatDataset):
    """mmengine's, whose images know which data set they are of: ``dataset_index``, a position in `datasets`.

    Metrics tell images of equal ids apart by it.

    Raises:
        UserError: no data set, or data sets of other classes than the first.
    """

    def __init__(self, datasets: Sequence[dict | Any], lazy_init: bool = False,
                 ignore_keys: str | Sequence[str] | None = None) -> None:
        if not datasets:
            raise UserError('ConcatDataset needs datasets=[dict(type=...), ...]')
        try:
            super().__init__(datasets, lazy_init, ignore_keys)
        except ValueError as error:
            if 'meta information' not in str(error):
                raise
            raise UserError('ConcatDataset: all data sets need one metainfo=dict(classes=(...)), in one order; entries '
                            f'named in ignore_keys may differ ({one_line(error)})') from None

    def get_data_info(self, idx: int) -> dict:
        return super().get_data_info(idx) | dict(dataset_index=self._get_ori_dataset_idx(idx)[0])

    def get_cat_ids(self, idx: int) -> list[int]:
        """Labels of the objects on image `idx` (mmengine's ClassBalancedDataset asks for them)."""
        which, inner = self._get_ori_dataset_idx(idx)
        return self.datasets[which].get_cat_ids(inner)

    def __getitem__(self, idx: int) -> Any:
        item = super().__getitem__(idx)
        sample = item.get('data_samples') if isinstance(item, dict) else None
        if hasattr(sample, 'set_metainfo'):
            sample.set_metainfo(dict(dataset_index=self._get_ori_dataset_idx(idx)[0]))
        return item


@DATASETS.register_module()
class RepeatDataset(mmengine_dataset.RepeatDataset):
    """mmengine's, which ClassBalancedDataset may stand around."""

    def get_cat_ids(self, idx: int) -> list[int]:
        """Labels of the objects on image `idx`."""
        return self.dataset.get_cat_ids(self._get_ori_dataset_idx(idx))
