"""Batches of images of one orientation."""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import BatchSampler, Sampler

from mmdet.config.errors import UserError
from mmdet.registry import DATA_SAMPLERS


@DATA_SAMPLERS.register_module()
class AspectRatioBatchSampler(BatchSampler):
    """Batch upright and wide images apart, so that little is padded.

    Sizes come from the annotation file; no image is decoded. The last images of both kinds share batches: every
    process makes as many batches as its number of images says, and none waits for another.

    Args:
        sampler: gives indices; its ``dataset`` gives width and height through ``get_data_info``.
        batch_size: images per batch.
        drop_last: drop a last batch that is not full.
    """

    def __init__(self, sampler: Sampler, batch_size: int, drop_last: bool = False) -> None:
        if not isinstance(batch_size, int) or batch_size < 1:
            raise UserError(f'batch_size={batch_size} must be a whole number of at least 1')
        super().__init__(sampler, batch_size, drop_last)
        self._upright: dict[int, bool] = {}

    def _is_upright(self, index: int) -> bool:
        if index not in self._upright:
            info = self.sampler.dataset.get_data_info(index)
            self._upright[index] = info['width'] < info['height']
        return self._upright[index]

    def __iter__(self) -> Iterator[list[int]]:
        groups: dict[bool, list[int]] = {False: [], True: []}
        for index in self.sampler:
            upright = self._is_upright(index)
            groups[upright].append(index)
            if len(groups[upright]) == self.batch_size:
                yield groups[upright]
                groups[upright] = []
        rest = groups[True] + groups[False]
        for start in range(0, len(rest), self.batch_size):
            batch = rest[start : start + self.batch_size]
            if len(batch) == self.batch_size or not self.drop_last:
                yield batch
