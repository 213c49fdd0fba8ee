"""Population statistics of batch norms, measured after training instead of averaged during it.

C    channels of a layer
"""

from collections.abc import Callable, Iterable
from itertools import islice

import torch
import torch.distributed as dist
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from torch import Tensor, nn

from mmdet.config.errors import UserError
from mmdet.engine.runner import model_of
from mmdet.registry import HOOKS

VARIANCES = ('population', 'batch')


class _Moments:
    """Moments of one layer's inputs, summed in float64."""

    def __init__(self, layer: nn.Module) -> None:
        self.saved = layer.running_mean.clone(), layer.running_var.clone()
        # Over positions: mean, var, mean^2; over batches: mean, unbiased var.
        self.sums = layer.running_mean.new_zeros(5, layer.num_features, dtype=torch.float64)
        self.counts = self.sums.new_zeros(2)  # positions, batches

    def observe(self, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        y = args[0].detach()
        count = y.numel() // y.shape[1]
        if count < 2:
            return
        var, mean = torch.var_mean(y.double(), [d for d in range(y.dim()) if d != 1], correction=0)
        unbiased = var * (count / (count - 1))
        self.sums += torch.stack([mean * count, var * count, mean.square() * count, mean, unbiased])
        self.counts += self.counts.new_tensor([count, 1])
        # The layer is in eval mode: it normalises by what its buffers hold, now this batch's statistics.
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(var)

    def write(self, layer: nn.Module, variance: str) -> None:
        positions, batches = self.counts.tolist()
        if not batches:  # never called
            layer.running_mean.copy_(self.saved[0])
            layer.running_var.copy_(self.saved[1])
            return
        if variance == 'population':
            mean, within, square = self.sums[:3] / positions
            var = (within + square - mean.square()) * (positions / max(positions - 1, 1))
        else:
            mean, var = self.sums[3:] / batches
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(var)


@torch.no_grad()
def precise_statistics(
    model: nn.Module, forward: Callable, batches: Iterable, variance: str = 'population'
) -> int:
    """Replace the running statistics of ``model`` by those of ``batches``; returns how many layers it did.

    It concerns the layers that have running statistics and are in training mode (not a frozen backbone's).
    During the measurement each of them normalises by the batch at hand, whatever it does in training: Batch
    Renormalization and CBN as well. In the end they hold the mean and, unbiased,

    - ``variance='population'``: the variance of all positions of all batches, that between the batches' means
      included. It does not depend on how the positions were divided into batches.
    - ``variance='batch'``: the average over batches of each batch's own variance: where BatchNorm2d's running
      average tends to. It is the smaller one where images differ in their means.

    Args:
        forward: called with each of ``batches``; runs the model as training does.

    Raises:
        UserError: for an unknown ``variance``.
    """
    if variance not in VARIANCES:
        raise UserError(f'PreciseBN: variance={variance!r} must be one of {VARIANCES}')
    layers = [m for m in model.modules() if m.training and getattr(m, 'running_mean', None) is not None]
    moments = [_Moments(layer) for layer in layers]
    hooks = [layer.register_forward_pre_hook(m.observe) for layer, m in zip(layers, moments)]
    for layer in layers:
        layer.eval()
    try:
        for batch in batches:
            forward(batch)
        for layer, moment in zip(layers, moments):
            if get_world_size() > 1:
                dist.all_reduce(moment.sums)
                dist.all_reduce(moment.counts)
            moment.write(layer, variance)
    except BaseException:
        for layer, moment in zip(layers, moments):
            layer.running_mean.copy_(moment.saved[0])
            layer.running_var.copy_(moment.saved[1])
        raise
    finally:
        for hook in hooks:
            hook.remove()
        for layer in layers:
            layer.train()
    return len(layers)


@HOOKS.register_module()
class PreciseBNHook(Hook):
    """Recompute the running statistics from ``num_iters`` training batches before the epoch is saved and validated.

    See ``precise_statistics`` for which layers and which variance. With several processes the sums are taken
    over all of them, while each batch is normalised by its own process's statistics.

    Args:
        num_iters: batches to measure, per process.
        interval: epochs between recomputations; the last epoch always has one. -1: the last epoch alone.
        variance: ``'population'`` or ``'batch'``.
    """

    priority = 'NORMAL'  # before CheckpointHook, which is VERY_LOW; validation follows the epoch's hooks

    def __init__(self, num_iters: int = 200, interval: int = -1, variance: str = 'population') -> None:
        if num_iters < 1:
            raise UserError(f'PreciseBNHook: num_iters={num_iters!r} must be at least 1')
        if variance not in VARIANCES:
            raise UserError(f'PreciseBNHook: variance={variance!r} must be one of {VARIANCES}')
        self.num_iters = num_iters
        self.interval = interval
        self.variance = variance

    def after_train_epoch(self, runner) -> None:
        if not (self.is_last_train_epoch(runner) or self.every_n_epochs(runner, self.interval)):
            return
        model = model_of(runner)

        def forward(batch):
            model(**model.data_preprocessor(batch, True), mode='loss')

        count = precise_statistics(model, forward, self._batches(runner.train_dataloader), self.variance)
        runner.logger.info(
            f'PreciseBN: {self.variance} statistics of {count} layers from {self.num_iters} batches'
        )

    def _batches(self, loader: Iterable) -> Iterable:
        left = self.num_iters
        while left:
            before = left
            for batch in islice(loader, left):
                left -= 1
                yield batch
            if left == before:
                raise UserError('PreciseBNHook: the training data loader is empty')
