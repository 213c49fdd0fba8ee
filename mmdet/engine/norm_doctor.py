"""What each norm makes of small batches, measured on a model in training: `mmdet norm-doctor`.

    C, M    channels of a layer; values per channel in one call of it
    N       batches that the truth is taken over

The weights stand still while it is measured. Three things are compared, for every norm behind a convolution:

*truth*       the N batches taken for one: mean and variance of all their positions, and the gradient of the mean of
              their losses in a network whose norms normalise with those. Found in sweeps, see `Together`.
*statistics*  what a layer normalises this batch with, in a network where all norms are of one kind, against the truth:
              |v - v_true| / v_true and |m - m_true| / sqrt(v_true), medians over channels.
*gradient*    that of the loss by the weight of the layer's convolution: its cosine with the truth's. `POOLED` is the
              one that this batch has when normalised with the truth's statistics, forward and back. It is no upper
              bound: BatchNorm subtracts this batch's own mean gradient, too.
"""

import contextlib
import copy
import inspect
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmdet.config.errors import UserError, at_most
from mmdet.config.values import class_of, walk
from mmdet.engine.memory import keeping
from mmdet.layers import ConvModule, CrossIterBatchNorm2d

# Options of CBN that make it each of the norms.
NORMS = {
    'BN': dict(buffer_num=0),
    'naive': dict(rho=0.0),
    'CBN': {},
    'CBN full gradient': dict(full_gradient=True),
    'CBN full gradient, 1/16': dict(full_gradient=True, derivative_fraction=1 / 16),
}
COSTS_ONLY = 'GN'  # has no statistics of a batch to be wrong
POOLED = 'pooled'
MAX_SWEEPS = 24
TOLERANCE = 0.001
PROBES = 8  # batches that the norms are compared on

# Error of the variance, in the worst part of the model, from which `advice` is against a norm. In the norm study
# (projects/norm_study/imagenet.md) errors of 13 to 23 % cost BatchNorm nothing, of 61 to 63 % six points of mask AP.
LARGE_ERROR = 0.35

Loss = Callable[[Any, int], Tensor]  # of a batch; the number seeds what is drawn at random


# -- the model ----------------------------------------------------------------------------------------


def put_norm(model: dict, norm_cfg: dict) -> list[str]:
    """Write `norm_cfg` into every part of a model's config that takes one, but for the backbone's; returns their
    places."""
    places = []
    for path, part in walk(model):
        if not isinstance(part, dict) or set(path.split('.')) & {'backbone', 'shared_head'}:
            continue
        if _takes_a_norm(class_of(part)):
            part['norm_cfg'] = dict(norm_cfg)
            places.append(path)
    return places


def _takes_a_norm(kind: type | None) -> bool:
    inits = [vars(base).get('__init__') for base in getattr(kind, '__mro__', ())]
    return any('norm_cfg' in inspect.signature(init).parameters for init in inits if inspect.isfunction(init))


def cbn_of(model: dict) -> dict:
    """The norm to train with: the config's own CBN where it has one, from the first iteration on and with the full
    gradient."""
    own = [part for path, part in walk(model) if path.endswith('norm_cfg') and isinstance(part, dict)]
    own = [part for part in own if class_of(part) is CrossIterBatchNorm2d and part.get('buffer_num', 3)]
    kept = {key: own[0][key] for key in ('buffer_num', 'compensation', 'eps') if key in own[0]} if own else {}
    return dict(type='CBN', full_gradient=True, **kept)


def normed_blocks(model: nn.Module) -> dict[str, ConvModule]:
    """The blocks of convolution and CBN that are trained, by their names."""
    return {
        name: block
        for name, block in model.named_modules()
        if isinstance(block, ConvModule) and isinstance(block.norm, CrossIterBatchNorm2d)
        and getattr(block.conv, 'weight', None) is not None and block.conv.weight.requires_grad
    }  # fmt: skip


@contextlib.contextmanager
def using(blocks: dict[str, ConvModule], layers: dict[str, nn.Module]) -> Iterator[None]:
    """The blocks' norms are `layers` in the meantime."""
    before = {name: block.norm for name, block in blocks.items()}
    for name, block in blocks.items():
        setattr(block, block.norm_name, layers[name])
    try:
        yield
    finally:
        for name, block in blocks.items():
            setattr(block, block.norm_name, before[name])


# -- the truth ----------------------------------------------------------------------------------------


class Together(nn.Module):
    """BatchNorm of many batches as if they were one, which would not fit into memory.

    Its gradient, gamma r (g - mean g - y^ mean(g y^)), needs four means over all batches: of y, y^2, g, g y^. A sweep
    over the batches normalises with those of the sweep before (the first: with each batch's own) and sums up its own. A
    layer's statistics are right once those of all layers before it are, the means of its gradient once those of all
    layers behind it are: D layers in a row are exact after D sweeps forward and D + 1 back, and not before.

    A layer that is called several times in a forward pass has statistics of each call.
    """

    def __init__(self, norm: CrossIterBatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.known: list[Tensor] = []  # of each call: mean, var, mean g, mean g y^, (4, C) in float64
        self.sums: list[Tensor] = []  # of each call: y, y^2, g, g y^, positions, (5, C)
        self.call = 0

    def forward(self, y: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        call, self.call = self.call, self.call + 1
        if call == len(self.sums):
            self.sums.append(torch.zeros(5, y.shape[1], dtype=torch.float64, device=y.device))
        known = self.known[call] if call < len(self.known) else None
        gamma = torch.ones_like(y[0, :, 0, 0]) if self.weight is None else self.weight
        beta = torch.zeros_like(gamma) if self.bias is None else self.bias
        return _Together.apply(y, gamma, beta, self.eps, known, self.sums[call])

    def end_sweep(self) -> None:
        self.known = []
        for sums in self.sums:
            mean, square, *gradients = sums[:4] / sums[4].clamp(min=1)
            self.known.append(torch.stack([mean, (square - mean.square()).clamp(min=0), *gradients]))
        self.sums = []


class _Together(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, gamma, beta, eps, known, sums):
        wide, axes = y.double(), [0, *range(2, y.dim())]
        count = max(y.numel() // y.shape[1], 1)
        sums[:2] += torch.stack([wide.sum(axes), wide.square().sum(axes)])
        sums[4] += y.numel() // y.shape[1]
        mean = wide.sum(axes) / count if known is None else known[0]
        var = (wide - _per_channel(mean, y)).square().sum(axes) / count if known is None else known[1]
        rstd = (var + eps).rsqrt()
        y_hat = ((wide - _per_channel(mean, y)) * _per_channel(rstd, y)).to(y.dtype)
        ctx.save_for_backward(y_hat, rstd, gamma)
        ctx.known, ctx.sums, ctx.axes, ctx.count = known, sums, axes, count
        return y_hat * _per_channel(gamma, y) + _per_channel(beta, y)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        y_hat, rstd, gamma = ctx.saved_tensors
        own = torch.stack([grad.double().sum(ctx.axes), (grad.double() * y_hat).sum(ctx.axes)])
        ctx.sums[2:4] += own
        of_mean, of_var = own / ctx.count if ctx.known is None else ctx.known[2:]
        inner = grad - _per_channel(of_mean, grad) - y_hat * _per_channel(of_var, grad)
        grad_y = (inner * _per_channel(gamma * rstd, grad)).to(grad.dtype)
        return grad_y, own[1].to(gamma.dtype), own[0].to(gamma.dtype), None, None, None


def _per_channel(t: Tensor, y: Tensor) -> Tensor:
    return t.view((1, -1) + (1,) * (y.dim() - 2))


def find_truth(
    blocks: dict[str, ConvModule], loss: Loss, batches: Sequence, tolerance: float = TOLERANCE
) -> tuple[dict[str, Together], dict[str, Tensor]]:
    """Layers that know the statistics of all batches together, and the gradient by each convolution's weight.

    Args:
        tolerance: sweeps end when no layer's variance, and no cosine of a gradient with its last, changes by more.
    """
    together = {name: Together(block.norm) for name, block in blocks.items()}
    with using(blocks, together):
        before = None
        for _ in range(MAX_SWEEPS):
            with torch.no_grad():
                _sweep(together, batches, loss)
            now = [known[:2] for layer in together.values() for known in layer.known]
            if before and all(max(statistics_error(*a, *b)) <= tolerance for a, b in zip(before, now)):
                break
            before = now
        last = None
        for _ in range(MAX_SWEEPS):
            _forget_gradients(blocks)
            _sweep(together, batches, lambda batch, number: loss(batch, number).backward())
            gradients = _gradients(blocks)
            if last and all(not g.any() or _cosine(g, last[name]) >= 1 - tolerance for name, g in gradients.items()):
                break
            last = gradients
    return together, {name: grad / len(batches) for name, grad in gradients.items()}


def _sweep(together: dict[str, Together], batches: Sequence, run: Callable[[Any, int], Any]) -> None:
    for number, batch in enumerate(batches):
        run(batch, number)
        for layer in together.values():
            layer.call = 0
    for layer in together.values():
        layer.end_sweep()


def _cosine(a: Tensor, b: Tensor) -> float:
    return torch.cosine_similarity(a.flatten(), b.flatten(), 0, 1e-300).item()


def _forget_gradients(blocks: dict[str, ConvModule]) -> None:
    for block in blocks.values():
        block.conv.weight.grad = None


def _gradients(blocks: dict[str, ConvModule]) -> dict[str, Tensor]:
    """By each convolution's weight, in float64; 0 where the loss does not depend on it."""
    weights = {name: block.conv.weight for name, block in blocks.items()}
    return {name: (torch.zeros_like(w) if w.grad is None else w.grad).double() for name, w in weights.items()}


# -- the norms ----------------------------------------------------------------------------------------


class Candidates:
    """Layers of every kind of `NORMS` beside those that train, with gamma and beta in common."""

    def __init__(self, blocks: dict[str, ConvModule]) -> None:
        self.blocks = blocks
        self.layers: dict[str, dict[str, nn.Module]] = {
            norm: {name: self._like(block.norm, options) for name, block in blocks.items()}
            for norm, options in NORMS.items()
        }
        self.layers[COSTS_ONLY] = {name: _group_norm(block.norm) for name, block in blocks.items()}

    @staticmethod
    def _like(trained: CrossIterBatchNorm2d, options: dict) -> CrossIterBatchNorm2d:
        given = dict(buffer_num=trained.buffer_num, compensation=trained.compensation, track_running_stats=False)
        layer = CrossIterBatchNorm2d(trained.num_features, trained.eps, **{**given, **options})
        layer.weight, layer.bias = trained.weight, trained.bias
        return layer

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """What passes the convolutions in training enters the histories."""

        def push(name: str, conv: nn.Module, inputs: tuple, y: Tensor) -> None:
            if torch.is_grad_enabled() and y.numel():
                for norm in NORMS:
                    layer = self.layers[norm][name]
                    if layer.buffer_num:
                        layer(y, conv=conv, x=inputs[0])

        hooks = [
            block.conv.register_forward_hook(lambda conv, inputs, y, name=name: push(name, conv, inputs, y))
            for name, block in self.blocks.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def run(self, norm: str, loss: Loss, batch: Any, number: int) -> tuple[dict[str, list], dict[str, Tensor], float]:
        """One batch with all norms of one kind, without a trace in their histories.

        Returns:
            of each layer and call, mean, variance (C,) that it normalised with, and M; the gradients; seconds.
        """
        used: dict[str, list] = {name: [] for name in self.blocks}
        layers = self.layers[norm]
        histories = {name: copy.deepcopy(layer.history) for name, layer in layers.items() if norm in NORMS}
        hooks = []
        for name in histories:
            layers[name]._last = None
            hooks.append(layers[name].register_forward_hook(lambda layer, *_, name=name: _note(used[name], layer)))
        _forget_gradients(self.blocks)
        with using(self.blocks, layers):
            began = self._now()
            loss(batch, number).backward()
            seconds = self._now() - began
        for hook in hooks:
            hook.remove()
        for name, history in histories.items():
            layers[name].history = history
        return used, _gradients(self.blocks), seconds

    def _now(self) -> float:
        if next(iter(self.blocks.values())).conv.weight.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def stored_bytes(self, norm: str) -> int:
        """Of the histories, which live from iteration to iteration."""
        held = [getattr(layer, 'history', None) for layer in self.layers[norm].values()]
        return sum(getattr(h, name).nbytes for h in held if h is not None for name in h.TENSORS)


def _note(used: list, layer: CrossIterBatchNorm2d) -> None:
    if layer._last is None:  # no RoI: nothing was normalised
        used.append(None)
        return
    pooled, _ = layer._last
    layer._last = None
    used.append((pooled.mean.double(), pooled.var.double(), int(pooled.batch.count)))


def _group_norm(trained: CrossIterBatchNorm2d) -> nn.GroupNorm:
    return nn.GroupNorm(_groups(trained.num_features), trained.num_features, trained.eps).to(trained.running_mean)


def _groups(*channels: int) -> int:
    """GroupNorm's 32 groups, or as many as divide the channels of all layers."""
    return math.gcd(32, *channels)


# -- the comparison -----------------------------------------------------------------------------------


def examine(candidates: Candidates, loss: Loss, truth_batches: Sequence, probes: Sequence) -> dict:
    """Errors and cosines of each layer, and costs of each norm, under the weights as they are now.

    Args:
        truth_batches: the N batches of the truth.
        probes: batches on which the norms are compared; what is returned are means over them.

    Raises:
        UserError: no norm is reached by the data, as where no image has an object; a loss is not finite.
    """
    blocks, layers = candidates.blocks, {}

    def finite(batch: Any, number: int) -> Tensor:
        value = loss(batch, number)
        _check_loss(value.item(), 'after the training')  # the last step may be the one that diverged
        return value

    together, large = find_truth(blocks, finite, truth_batches)
    found = {name: dict(M=[], errors={norm: [] for norm in NORMS}, cosines={}) for name in blocks}
    seconds: dict[str, list[float]] = {norm: [] for norm in candidates.layers}
    for number, batch in enumerate(probes, len(truth_batches)):
        for norm in candidates.layers:
            used, gradients, spent = candidates.run(norm, loss, batch, number)
            seconds[norm].append(spent)
            if norm in NORMS:
                _compare(found, norm, used, together, gradients, large)
        _compare(found, POOLED, {}, together, _pooled_gradients(blocks, together, loss, batch, number), large)
    for name, one in found.items():
        if one['M']:
            layers[name] = dict(
                channels=blocks[name].norm.num_features,
                M=statistics.median(one['M']),
                calls=len(together[name].known),
                errors={norm: dict(mean=_mean(m), var=_mean(v)) for norm, (m, v) in _columns(one['errors'])},
                cosines={norm: _mean(values) for norm, values in one['cosines'].items()},
            )
    if not layers:
        raise UserError('no norm of neck and heads saw a feature in the probed batches: have the images objects?')
    costs = {
        norm: dict(
            seconds=statistics.median(times),
            saved_bytes=_saved_bytes(candidates, norm, loss, probes[0]),
            stored_bytes=candidates.stored_bytes(norm),
        )
        for norm, times in seconds.items()
    }
    return dict(layers=layers, summary=_summary(layers), costs=costs)


def _compare(found: dict, norm: str, used: dict, together: dict, gradients: dict, large: dict) -> None:
    for name, one in found.items():
        if gradients[name].any():
            one['cosines'].setdefault(norm, []).append(_cosine(gradients[name], large[name]))
        for call, statistics_used in enumerate(used.get(name, ())):
            if statistics_used is not None and call < len(together[name].known):
                mean, var, count = statistics_used
                one['errors'][norm].append(statistics_error(mean, var, *together[name].known[call][:2]))
                one['M'].append(count)


def statistics_error(mean: Tensor, var: Tensor, true_mean: Tensor, true_var: Tensor) -> tuple[float, float]:
    """Medians over channels of |m - m_true| / sqrt(v_true) and |v - v_true| / v_true."""
    scale = true_var.clamp(min=1e-8)  # channels that are off
    return ((mean - true_mean).abs() / scale.sqrt()).median().item(), ((var - true_var).abs() / scale).median().item()


def _pooled_gradients(blocks: dict, together: dict, loss: Loss, batch: Any, number: int) -> dict[str, Tensor]:
    _forget_gradients(blocks)
    with using(blocks, together):
        loss(batch, number).backward()
    for layer in together.values():
        layer.call, layer.sums = 0, []
    return _gradients(blocks)


def _columns(errors: dict[str, list]) -> Iterator[tuple[str, tuple]]:
    for norm, pairs in errors.items():
        yield norm, tuple(zip(*pairs)) or ((), ())


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _summary(layers: dict[str, dict]) -> dict[str, dict]:
    """Medians over layers."""
    found: dict[str, dict] = {}
    for norm in (*NORMS, POOLED):
        errors = [layer['errors'][norm] for layer in layers.values() if norm in layer['errors']]
        cosines = [layer['cosines'][norm] for layer in layers.values() if norm in layer['cosines']]
        found[norm] = {key: statistics.median(e[key] for e in errors) for key in ('mean', 'var')} if errors else {}
        found[norm]['cosine'] = statistics.median(cosines) if cosines else None
    return found


def _saved_bytes(candidates: Candidates, norm: str, loss: Loss, batch: Any) -> int:
    """What a forward pass of the whole network keeps for the backward pass, each storage once, without parameters."""
    kept: dict[int, int] = {}
    with keeping(kept, (p for block in candidates.blocks.values() for p in block.parameters())):
        candidates.run(norm, loss, batch, 0)
    return sum(kept.values())


# -- a training of a few iterations -------------------------------------------------------------------


def train(step: Callable[[Any, int], float], batches: Iterable, iterations: int, candidates: Candidates) -> None:
    """Train; the last batches that a window holds enter the candidates' histories as well.

    Args:
        step: of a batch and the iteration's number, trains and returns the loss.

    Raises:
        UserError: the loss is not finite.
    """
    window = max(block.norm.buffer_num for block in candidates.blocks.values())
    for iteration, batch in enumerate(itertools.islice(batches, iterations)):
        with candidates.watching() if iteration >= iterations - window else contextlib.nullcontext():
            value = step(batch, iteration)
        _check_loss(value, f'in iteration {iteration + 1}')


def _check_loss(value: float, when: str) -> None:
    if not math.isfinite(value):
        raise UserError(f'the loss is {value} {when}: a smaller learning rate is needed, '
                        'e.g. --cfg-options optim_wrapper.optimizer.lr=0.001')


# -- the advice ---------------------------------------------------------------------------------------


def advice(report: dict) -> list[str]:
    """Three lines: what to take, what the statistics say, what the gradient and the cost are."""
    chosen, summary, costs, layers = 'CBN full gradient', report['summary'], report['costs'], report['layers']
    (part, of_bn), (cbn_part, of_cbn) = (worst_part(layers, norm) for norm in ('BN', chosen))
    group_norm = f"dict(type='GN', num_groups={_groups(*(layer['channels'] for layer in layers.values()))})"
    if of_bn <= LARGE_ERROR:
        first = f"Take norm_cfg=dict(type='BN') or {group_norm}: train both, what a model is worth only its AP can say."
    elif of_cbn <= LARGE_ERROR:
        first = (f"Take norm_cfg={group_norm}, not BN. Train dict(type='CBN', full_gradient=True) beside it: pooling "
                 'mends the statistics.')
    else:
        first = f'Take norm_cfg={group_norm}, not BN: its statistics are poor here, and pooling does not mend them.'
    sizes = [layer['M'] for layer in layers.values()]
    ratio = {key: costs[chosen][key] / max(costs['BN'][key], 1e-12) for key in ('seconds', 'saved_bytes')}
    cosines = {norm: summary[norm]['cosine'] or 0.0 for norm in ('BN', chosen, POOLED)}
    return [
        first,
        f"Statistics: from M = {min(sizes):,.0f} to {max(sizes):,.0f} values per channel. BatchNorm's variance is off "
        f"most in {part}, by {of_bn:.1%}; CBN's in {cbn_part}, by {of_cbn:.1%} (poor from {LARGE_ERROR:.0%}).",
        f"Gradient: cosine with the large batch's {cosines['BN']:.3f} with BN, {cosines[chosen]:.3f} with CBN, "
        f"{cosines[POOLED]:.3f} with the large batch's statistics; the advice does not look at it. CBN takes "
        f'{ratio["seconds"]:.2f} times the time of BN and {ratio["saved_bytes"]:.2f} times its memory.',
    ]


def worst_part(layers: dict[str, dict], norm: str) -> tuple[str, float]:
    """The part of the model, neck or one of the heads, whose layers' median error of the variance is the largest."""
    found: dict[str, list[float]] = {}
    for name, layer in layers.items():
        first, second, *_ = *name.split('.'), ''
        part = f'{first}.{second}' if first == 'roi_head' else first
        if norm in layer['errors']:
            found.setdefault(part, []).append(layer['errors'][norm]['var'])
    return max(((part, statistics.median(errors)) for part, errors in found.items()), key=lambda one: one[1])


def check_places(places: Sequence[str], blocks: dict) -> None:
    """Raise UserError where there is no norm to look at."""
    if not places:
        raise UserError('no part of the model but the backbone takes a norm_cfg: there is nothing to examine')
    if not blocks:
        raise UserError(f'{at_most(places, 4)}: a norm_cfg is taken, but no trained ConvModule uses it (a box head '
                        'without convolutions has none), there is nothing to examine')
