"""`GatheredMetric`: a metric of several processes that need no shared folder."""

from itertools import zip_longest

from mmengine.dist import broadcast_object_list, collect_results, gather_object, is_main_process
from mmengine.evaluator import BaseMetric


class GatheredMetric(BaseMetric):
    """mmengine's `BaseMetric`, whose `results` go to rank 0 through the process group; mmengine's own are written to
    `.dist_test/`, which several machines would have to share. With `collect_dir` they are written there.

    An error in `compute_metrics` is raised by every process: none is left waiting.
    """

    def evaluate(self, size: int) -> dict:
        """Metrics over all processes, on each of them; `size`: length of the data set, without a sampler's padding."""
        if self.collect_dir is None:
            shares = gather_object(self.results) or ()
            nothing = object()
            dealt = [result for row in zip_longest(*shares, fillvalue=nothing) for result in row]
            results = [result for result in dealt if result is not nothing][:size]
        else:
            results = collect_results(self.results, size, 'cpu', self.collect_dir)
        outcome: dict | Exception | None = None
        if is_main_process():
            try:
                values = self.compute_metrics(results)
                outcome = {f'{self.prefix}/{name}' if self.prefix else name: values[name] for name in values}
            except Exception as error:
                outcome = error
        shared = [outcome]
        broadcast_object_list(shared)
        self.results.clear()
        if isinstance(shared[0], Exception):
            raise outcome or shared[0]
        return shared[0]
