"""Tables and figures of the detection study from its records; `python -m projects.norm_study.report` calls it."""

import itertools
import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from .study import BATCHES, HERE, NORMS

RESULTS = HERE / 'results'

METRICS = {'bbox_mAP': 'box AP', 'segm_mAP': 'mask AP', 'bbox_mAP_50': 'box AP50', 'segm_mAP_50': 'mask AP50'}
PRIMARY = tuple(METRICS)[:2]
COLOURS = dict(zip(NORMS, ('tab:grey', 'tab:blue', 'tab:green', 'tab:orange', 'tab:red')))
# Student's t, 97.5 %, by degrees of freedom
T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
# what is compared in each batch size: first minus second
PAIRS = [
    ('CBN-full', 'BN'), ('CBN', 'BN'), ('GN', 'BN'), ('none', 'BN'),
    ('CBN-full', 'GN'), ('CBN-full', 'CBN'), ('CBN-full', 'none'), ('GN', 'none'),
]  # fmt: skip


def records(folder: Path, part: str) -> list[dict]:
    return [json.loads(file.read_text()) for file in sorted(folder.glob(f'{part}-*.json'))]


def by_seed(found: Sequence[dict], norm: str, batch: int, metric: str) -> dict[int, float]:
    return {r['seed']: r['metrics'][metric] for r in found if r['norm'] == norm and r['batch'] == batch}


def differences(found: Sequence[dict], first: tuple, second: tuple, metric: str) -> list[float]:
    """Of (norm, batch) and (norm, batch), one for each seed that both have."""
    a, b = (by_seed(found, *which, metric) for which in (first, second))
    return [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and the ends of its 95 % interval: the expanded percentile bootstrap (Hesterberg 2015, section 3.3).

    All resamples are enumerated. The percentiles are those that make the interval as wide as Student's for values from
    a normal distribution; for five values it is nearly their range.
    """
    n, mean = len(values), statistics.mean(values)
    if n < 2:
        return mean, -math.inf, math.inf
    tail = statistics.NormalDist().cdf(-math.sqrt(n / (n - 1)) * T[n - 1])
    means = sorted(statistics.fmean(chosen) for chosen in itertools.product(values, repeat=n))
    low = means[int(tail * len(means))]
    return mean, low, means[-1 - int(tail * len(means))]


def verdict(values: Sequence[float]) -> str:
    mean, low, high = interval(values)
    if low <= 0 <= high:
        return f'no difference above {max(-low, high):.1f}'
    return 'higher' if mean > 0 else 'lower'


def shown(values: Sequence[float]) -> str:
    mean, low, high = interval(values)
    return f'{mean:+.1f} ({low:+.1f} to {high:+.1f})'


def ap_table(found: Sequence[dict], markdown: Callable) -> str:
    rows = []
    for metric, batch in itertools.product(METRICS, BATCHES):
        values = [list(by_seed(found, norm, batch, metric).values()) for norm in NORMS]
        cells = [f'{statistics.mean(v):.1f} ± {statistics.stdev(v):.1f}' if len(v) > 1 else '' for v in values]
        rows.append([METRICS[metric], str(batch), *cells])
    return markdown(['', 'batch', *NORMS], rows)


def difference_table(found: Sequence[dict], markdown: Callable) -> str:
    rows = []
    for (first, second), batch in itertools.product(PAIRS, BATCHES):
        values = [differences(found, (first, batch), (second, batch), metric) for metric in PRIMARY]
        if all(len(v) > 1 for v in values):
            cells = [text for v in values for text in (shown(v), verdict(v))]
            rows.append([f'{first} - {second}', str(batch), *cells, str(len(values[0]))])
    return markdown(['', 'batch', 'box AP', '', 'mask AP', '', 'seeds'], rows)


def rate_table(found: Sequence[dict], markdown: Callable) -> str:
    rates = sorted({r['rate'] for r in found})
    rows = []
    for norm in NORMS:
        cells = {r['rate']: r['metrics'] for r in found if r['norm'] == norm}
        rows.append(
            [norm, *(f'{m["bbox_mAP"]:.1f} / {m["segm_mAP"]:.1f}' if (m := cells.get(r)) else '' for r in rates)]
        )
    return markdown(['norm', *(f'{rate:g}' for rate in rates)], rows)


def cost_table(found: Sequence[dict], markdown: Callable) -> str:
    rows = []
    for norm in NORMS:
        row = [norm]
        for field, form, batch in itertools.product(('step_seconds', 'kept_mib'), ('{:.3f}',), BATCHES):
            values = [r[field] for r in found if r['norm'] == norm and r['batch'] == batch]
            form = '{:.0f}' if field == 'kept_mib' else form
            row.append(form.format(statistics.median(values)) if values else '')
        rows.append(row)
    head = [f'{what}, batch {b}' for what in ('CPU seconds a step', 'MiB kept for the backward pass') for b in BATCHES]
    return markdown(['norm', *head], rows)


def tables(markdown: Callable) -> dict[str, str]:
    """By the names of their places in the pages."""
    found, chosen = records(RESULTS, 'primary'), records(RESULTS, 'lr')
    return {
        'imagenet-ap': ap_table(found, markdown),
        'imagenet-differences': difference_table(found, markdown),
        'imagenet-rates': rate_table(chosen, markdown),
        'imagenet-costs': cost_table(found, markdown),
    }


def draw(folder: Path) -> None:
    found = records(RESULTS, 'primary')
    draw_ap(found, folder / 'imagenet_ap.png')
    draw_differences(found, folder / 'imagenet_differences.png')


def draw_ap(found: Sequence[dict], path: Path) -> None:
    """AP against batch size with intervals."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout='constrained')
    for axis, metric in zip(axes, PRIMARY):
        for place, norm in enumerate(NORMS):
            points = [(b, interval(v)) for b in BATCHES if len(v := list(by_seed(found, norm, b, metric).values())) > 1]
            if points:
                x = [BATCHES.index(b) + (place - (len(NORMS) - 1) / 2) * 0.07 for b, _ in points]
                mean, low, high = zip(*(values for _, values in points))
                error = [[m - a for m, a in zip(mean, low)], [b - m for m, b in zip(mean, high)]]
                axis.errorbar(x, mean, error, marker='o', capsize=3, label=norm, color=COLOURS[norm])
        axis.set_xticks(range(len(BATCHES)), BATCHES)
        axis.set(xlabel='images per step', ylabel=f'{METRICS[metric]}, %', xlim=(-0.4, len(BATCHES) - 0.6))
        axis.grid(axis='y', alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc='outside right center')
    figure.savefig(path, dpi=90)
    plt.close(figure)


def draw_differences(found: Sequence[dict], path: Path) -> None:
    """What changes what: paired differences with their intervals, those that hold 0 in grey."""
    compared = [(f'{a} - {b}, batch {n}', (a, n), (b, n)) for a, b in PAIRS for n in BATCHES]
    compared += [(f'{norm}: batch 2 - batch 1', (norm, 2), (norm, 1)) for norm in NORMS]
    figure, axes = plt.subplots(1, 2, figsize=(9, 0.27 * len(compared) + 1), sharey=True, layout='constrained')
    for axis, metric in zip(axes, PRIMARY):
        for row, (_, *pair) in enumerate(compared):
            values = differences(found, *pair, metric)
            if len(values) > 1:
                mean, low, high = interval(values)
                colour = 'grey' if low <= 0 <= high else 'tab:green' if mean > 0 else 'tab:red'
                axis.errorbar(mean, row, xerr=[[mean - low], [high - mean]], marker='o', capsize=3, color=colour)
        axis.axvline(0, color='black', linewidth=0.8)
        axis.set_yticks(range(len(compared)), [name for name, *_ in compared])
        axis.set(xlabel=f'difference of {METRICS[metric]}', ylim=(len(compared) - 0.5, -0.5))
        axis.grid(axis='x', alpha=0.3)
    figure.savefig(path, dpi=90)
    plt.close(figure)
