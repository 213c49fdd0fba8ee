"""mmengine's wrappers of data sets, where detection needs more of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine import dataset as mmengine_dataset

from mmdet.config.errors import UserError, one_line
from mmdet.datasets.common import check_packed
from mmdet.datasets.pipeline import build_steps, check_order, pipelines_of
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


@DATASETS.register_module()
class MultiImageMixDataset:
    """A data set whose images pass through a second pipeline, in which a step may ask for others (`Mosaic`).

    Args:
        dataset: the data set, whose own pipeline loads images and objects.
        pipeline: what is done afterwards, to the end (`PackDetInputs`). Before a step that has
            ``get_indexes(dataset)`` the images it draws are loaded into ``mix_results``.
        max_refetch: how many other images to try where the pipeline rejects one.

    Raises:
        UserError: a step that moves pixels stands before one that loads objects.
    """

    @classmethod
    def check_config(cls, cfg: dict, path: str, whole: dict, training: bool) -> None:
        """Refuse a pipeline of known transforms none of which packs its results."""
        check_packed(cfg, path, whole)

    def __init__(self, dataset: dict | Any, pipeline: Sequence[dict | Any], max_refetch: int = 15) -> None:
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self.pipeline = build_steps(pipeline)
        self.max_refetch = max_refetch
        for loading in pipelines_of(self.dataset):
            check_order([loading, self.pipeline])

    @property
    def metainfo(self) -> dict:
        return self.dataset.metainfo

    def full_init(self) -> None:
        self.dataset.full_init()

    def get_data_info(self, idx: int) -> dict:
        return self.dataset.get_data_info(idx)

    def get_cat_ids(self, idx: int) -> list[int]:
        """Labels of the objects on image `idx` (mmengine's ClassBalancedDataset asks for them)."""
        return self.dataset.get_cat_ids(idx)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, idx: int) -> Any:
        for _ in range(self.max_refetch + 1):
            item = self._prepare(idx)
            if item is not None:
                return item
            idx = int(np.random.randint(len(self)))
        raise UserError(f'MultiImageMixDataset: the pipeline rejected {self.max_refetch + 1} images in a row')

    def _prepare(self, idx: int) -> Any:
        item = self.dataset[idx]
        for step in self.pipeline:
            if hasattr(step, 'get_indexes'):
                item['mix_results'] = [self.dataset[i] for i in step.get_indexes(self.dataset)]
            item = step(item)
            if item is None:
                break
        return item
