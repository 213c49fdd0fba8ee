"""`MultiDatasetsEvaluator`: several data sets in one evaluation, each with its own metric and numbers."""

from collections.abc import Sequence
from typing import Any

from mmengine.dist import all_gather_object
from mmengine.evaluator import BaseMetric, Evaluator

from mmdet.config.errors import UserError
from mmdet.registry import EVALUATOR


@EVALUATOR.register_module()
class MultiDatasetsEvaluator(Evaluator):
    """Evaluate each data set of a ConcatDataset with the metric of its position.

    Its numbers are called PREFIX/NAME, such as 'small/coco/bbox_mAP'. Images are told apart by the ``dataset_index``
    that ConcatDataset gives their data samples, so ids may be equal in several data sets.

    Args:
        metrics: one a data set of the ConcatDataset, in its order.
        dataset_prefixes: names of the data sets; default '0', '1', ...

    Raises:
        UserError: as many prefixes as metrics are needed, and as many data sets.
    """

    def __init__(
        self, metrics: dict | BaseMetric | Sequence, dataset_prefixes: Sequence[str] | None = None
    ) -> None:
        super().__init__(metrics)
        self.own = list(self.metrics)  # a metric that is added to `metrics` later gets every image
        names = [str(i) for i in range(len(self.own))] if dataset_prefixes is None else list(dataset_prefixes)
        if len(names) != len(self.own) or len(set(names)) < len(names):
            raise UserError(f'MultiDatasetsEvaluator: dataset_prefixes={names} must be {len(self.own)} different '
                            'names, one a metric')
        self.dataset_prefixes = names
        self._seen: list[set] = [set() for _ in self.own]  # image ids of each data set

    def parts(self, dataset: Any) -> dict[BaseMetric, Any]:
        """The data set of each metric, of those in a ConcatDataset."""
        inside = getattr(dataset, 'datasets', ())
        if len(inside) != len(self.own):
            raise UserError(f'MultiDatasetsEvaluator has {len(self.own)} metrics: its data set must be a ConcatDataset '
                            f'of {len(self.own)} data sets, not ' + (f'of {len(inside)}' if inside else 'one'))
        return dict(zip(self.own, inside))

    def process(self, data_samples: Sequence, data_batch: Any | None = None) -> None:
        """Give each data sample to the metric of its data set. The batch, whose images are of any, is not passed on."""
        samples = [s.to_dict() if hasattr(s, 'to_dict') else s for s in data_samples]
        for metric in self.metrics:
            if metric not in self.own:
                metric.process(data_batch, samples)
        for index, metric in enumerate(self.own):
            mine = [sample for sample in samples if self._index(sample) == index]
            self._seen[index].update(sample['img_id'] for sample in mine)
            if mine:
                metric.process(None, mine)

    def evaluate(self, size: int) -> dict:
        """All metrics' numbers over all processes; `size`: the length of the whole data set."""
        seen = all_gather_object(self._seen)
        self._seen = [set() for _ in self.own]
        values = {}
        for metric in self.metrics:
            if metric not in self.own:
                values |= metric.evaluate(size)
        for index, (name, metric) in enumerate(zip(self.dataset_prefixes, self.own)):
            # without the images that a sampler repeated
            found = metric.evaluate(len(set().union(*(ids[index] for ids in seen))))
            values |= {f'{name}/{key}': value for key, value in found.items()}
        return values

    def _index(self, sample: dict) -> int:
        index = sample.get('dataset_index')
        if index is None or index >= len(self.own):
            raise UserError(f'MultiDatasetsEvaluator has {len(self.own)} metrics: its data set must be a ConcatDataset '
                            'of as many data sets')
        return index
