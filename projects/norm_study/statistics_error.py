"""How wrong the statistics are that a layer normalises with, measured while it trains.

    python -m projects.norm_study.statistics_error [--data DIR]

A network with CBN (window 4, no burn-in) is trained as in classify.py. Every few iterations, in every layer:

- *own weights*: past batches' statistics (naive, Taylor, root; the derivative from all positions or from a
  lattice) against those of the layer's stored inputs under its current weights. This is what the compensation
  approximates.
- *all weights*: the same against those of the past images sent through the network as it is now, but for the
  statistics that each layer normalises with, which stay those of then: all layers' weights changed.
- *whole network*: the same with the statistics that the layers normalise with now: the quantity of interest.
- *population*: what the layer normalises with (the current batch alone, as BatchNorm does; pooled, naive,
  Taylor, root) against the statistics of 256 training images sent through the network as it is now.

Errors: of the variance |v - v_true| / v_true, of the mean |m - m_true| / sqrt(v_true); medians over channels,
then means over layers, runs, and past batches.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdet.layers.batch_stats import batch_moments
from mmdet.layers.cbn import CrossIterBatchNorm2d
from mmdet.layers.cbn.derivatives import ConvCall, in_closed_form, subsampling_grid
from mmdet.layers.cbn.history import History, pool_moments

from .classify import BASE_BATCH, EPOCHS, NETS, REGIMES, RESULTS, SAMPLES
from .classify import _side_by_side as side_by_side
from .data import batches, load
from .nets import SideBySide

PAST = 3
FACTORS = {'all positions': 1, '1/4 of them': 4, '1/16 of them': 16}


class Watched(CrossIterBatchNorm2d):
    """CBN that keeps what it normalised with."""

    def _statistics(self, *args, **kwargs):
        pooled = super()._statistics(*args, **kwargs)
        self.used = pooled.mean, pooled.var
        return pooled


class Probe:
    """One layer's past batches, with derivatives of each kind."""

    def __init__(self, conv: nn.Conv2d) -> None:
        self.conv, self.histories, self.inputs, self.count = conv, {}, [None] * PAST, 0

    def flat(self) -> Tensor:
        return self.conv.weight.detach().flatten(1)

    def push(self, x: Tensor, y: Tensor) -> None:
        batch, call = batch_moments(y), ConvCall.of(None, self.conv, x)
        for name, factor in FACTORS.items():
            grid = subsampling_grid(len(y), *y.shape[2:], factor, int(self.count * 0.618034 % 1 * factor))
            derivatives = in_closed_form(x, y, batch, call.geometry, grid)
            history = self.histories.setdefault(name, History(PAST, derivatives.shape, derivatives))
            self.inputs[history.slot] = x  # the slots of all histories agree
            history.add(batch, call, derivatives)
        self.count += 1

    def estimates(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Means and variances (C, PAST) under the current weight."""
        full = self.histories['all positions']
        found = {
            'naive': full.estimate(self.flat(), 0.0, 'taylor'),
            'root': full.estimate(self.flat(), 1.0, 'root'),
        }
        for name, history in self.histories.items():
            found[f'Taylor, {name}'] = history.estimate(self.flat(), 1.0, 'taylor')
        return found


def errors(estimate: tuple[Tensor, Tensor], truth: tuple[Tensor, Tensor], runs: int) -> tuple[float, ...]:
    """Of the mean, of the variance, and of the variance with its sign."""
    (mean, var), (true_mean, true_var) = (
        [value.reshape(runs, len(value) // runs, -1) for value in both] for both in (estimate, truth)
    )
    scale = true_var.clamp(min=1e-8)  # channels that are off
    return (
        ((mean - true_mean).abs() / scale.sqrt()).median(1).values.mean().item(),
        ((var - true_var).abs() / scale).median(1).values.mean().item(),
        ((var - true_var) / scale).median(1).values.mean().item(),
    )


@torch.no_grad()
def through(model: SideBySide, images: Tensor, used: list | None = None) -> list[tuple[Tensor, Tensor]]:
    """Statistics of every convolution's output when the layers normalise with ``used``, or as they just did."""
    found, x = [], images
    used = used or [norm.used for norm in model.norms]
    for conv, norm, statistics, residual in zip(model.convs, model.norms, used, model.residual):
        y = conv(x)
        found.append(batch_moments(y)[:2])
        y = F.relu(F.batch_norm(y, *statistics, norm.weight, norm.bias, False, 0.0, norm.eps))
        x = x + y if residual else y
    return found


def run(regime_name: str, batch: int, lr_factor: float, root: Path | None, runs: int, every: int) -> dict:
    regime = REGIMES[regime_name]
    split = load(regime.data, root)
    seeds = list(range(runs))
    model = SideBySide(
        split.train.images.shape[1], split.classes, NETS[regime.net], dict(type=Watched), seeds
    )
    iterations = SAMPLES // batch
    order = torch.stack([batches(split.train, regime.order, batch, iterations, s) for s in seeds], dim=2)
    some = torch.randperm(len(split.train.labels), generator=torch.Generator().manual_seed(9))[:256]
    population = side_by_side(split.train.images[some][:, None], runs)
    lr = regime.lr * lr_factor * batch / BASE_BATCH
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=regime.weight_decay)
    probes = [Probe(conv) for conv in model.convs]
    inputs = {}
    for conv in model.convs:
        conv.register_forward_hook(lambda conv, x, y: inputs.__setitem__(conv, (x[0].detach(), y.detach())))
    past, curve = [None] * PAST, []
    for step, index in enumerate(order):
        epoch = step * EPOCHS / iterations
        decay = 0.1 ** ((epoch >= 8) + (epoch >= 11))
        for group in optimizer.param_groups:
            group['lr'] = lr * decay * min(1.0, 1 / 3 + 2 / 3 * epoch / 0.5)
        images = side_by_side(split.train.images[index], runs)
        near = step % every
        if near == 0 and step:
            now = measure(model, probes, inputs, images, past, population, runs)
            curve.append(dict(step=step, lr=optimizer.param_groups[0]['lr'], **now))
        logits = model(images)
        if near >= every - PAST:  # only what the next measurement needs
            for probe in probes:
                probe.push(*inputs[probe.conv])
            used = [norm.used for norm in model.norms]
            past[(probes[0].histories['all positions'].slot - 1) % PAST] = images, used
        losses = F.cross_entropy(logits.transpose(1, 2), split.train.labels[index], reduction='none').mean(0)
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
    return dict(regime=regime_name, batch=batch, lr_factor=lr_factor, lr=lr, runs=runs, curve=curve)


@torch.no_grad()
def measure(model, probes, inputs, images, past, population, runs) -> dict:
    # A look at the current batch without a trace: no_grad leaves the histories as they are.
    states = {key: value.clone() for key, value in model.state_dict().items()}
    model(images)
    model.load_state_dict(states)
    found: dict[str, list] = {}
    weights = [through(model, batch, used) for batch, used in past]
    whole = [through(model, batch) for batch, _ in past]
    everything = through(model, population)
    for layer, probe in enumerate(probes):
        own = [batch_moments(probe.conv(x))[:2] for x in probe.inputs]
        truths = {
            name: tuple(torch.stack(parts, 1) for parts in zip(*batches_of))
            for name, batches_of in dict(
                own=own, weights=[batch[layer] for batch in weights], whole=[batch[layer] for batch in whole]
            ).items()
        }
        current = batch_moments(inputs[probe.conv][1])[:2]
        estimates = probe.estimates()
        for kind, truth in truths.items():
            for name, estimate in estimates.items():
                found.setdefault(f'{kind}|{name}', []).append(errors(estimate, truth, runs))
        pooled = {name: pool_moments(*current, *estimate) for name, estimate in estimates.items()}
        pooled['pooled true'] = pool_moments(*current, *truths['whole'])
        for name, used in dict(pooled, BatchNorm=current).items():
            found.setdefault(f'population|{name}', []).append(errors(used, everything[layer], runs))
    mean = {key: torch.tensor(values).mean(0).tolist() for key, values in found.items()}
    return {
        field: {key: float(f'{values[i]:.4g}') for key, values in mean.items()}
        for i, field in enumerate(('mean', 'var', 'signed'))
    }


SETTINGS = [  # regime, batch, learning rate factor
    ('digits-one', 4, 1.0),
    ('digits-one-fast', 4, 1.0),
    ('digits-fc', 4, 1.0),
    ('digits', 4, 1.0),
    ('coco-photo', 4, 1.0),
    ('digits-fast', 4, 1.0),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, help='folder with coco_dev/')
    parser.add_argument('--out', type=Path, default=RESULTS / 'statistics_error.json')
    parser.add_argument('--runs', type=int, default=2, help='seeds')
    args = parser.parse_args()
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    for setting in SETTINGS:
        key = '|'.join(map(str, setting))
        if key in results:
            continue
        try:
            results[key] = run(*setting, args.data, args.runs, every=32)
        except FileNotFoundError as error:
            print(f'{key}: left out, {error}')
            continue
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=None))
        last = results[key]['curve'][len(results[key]['curve']) // 2]['var']
        print(key, {name: round(value, 4) for name, value in last.items()}, flush=True)


if __name__ == '__main__':
    main()
