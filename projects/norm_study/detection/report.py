"""Tables and figures of the detection study from its records; `python -m projects.norm_study.report` calls it."""

import itertools
import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from .study import BACKBONES, BATCHES, HERE, NORMS, SCALES, VARIANTS

RESULTS = HERE / 'results'

METRICS = {'bbox_mAP': 'box AP', 'segm_mAP': 'mask AP', 'bbox_mAP_50': 'box AP50', 'segm_mAP_50': 'mask AP50'}
PRIMARY = tuple(METRICS)[:2]
COLOURS = dict(zip(NORMS, ('tab:grey', 'tab:blue', 'tab:green', 'tab:orange', 'tab:red')))
RESAMPLES = 20_000
NOT_RUN = 'No seed is complete.'
GRIDS = {'primary': 'facade', 'long': 'facade', 'nuclei': 'nuclei'}  # parts that compare all norms, on which data
# what is compared in each batch size: first minus second
PAIRS = [
    ('CBN-full', 'BN'), ('CBN', 'BN'), ('GN', 'BN'), ('none', 'BN'),
    ('CBN-full', 'GN'), ('CBN-full', 'CBN'), ('CBN-full', 'none'), ('GN', 'none'),
]  # fmt: skip
BACKBONE_PAIRS = [('GN+BN', 'GN+fixed'), ('GN+CBN-full', 'GN+fixed'), ('GN+CBN-full', 'GN+BN')]
WHY = {'why': 'primary', 'nuclei_why': 'nuclei'}  # what is compared with the runs of which grid


def records(folder: Path, part: str) -> list[dict]:
    return [json.loads(file.read_text()) for file in sorted(folder.glob(f'{part}-*.json'))]


def whole_seeds(found: Sequence[dict], norms: Sequence[str] = NORMS) -> list[dict]:
    """The records of seeds whose every setting is there: a half-run seed would favour what was run first."""
    counts = Counter(r['seed'] for r in found)
    return [r for r in found if counts[r['seed']] == len(norms) * len(BATCHES)]


class Runs:
    """One metric of the runs of a grid, and how far runs lie apart.

    A run's AP is taken for the sum of its setting's and its seed's share (least squares) and a residual. Residuals of
    all settings are pooled: a few seeds of one setting alone say little about their spread.
    """

    def __init__(self, found: Sequence[dict], metric: str) -> None:
        self.values: dict[tuple, dict[int, float]] = {}
        for r in found:
            self.values.setdefault((r['norm'], r['batch']), {})[r['seed']] = r['metrics'][metric]
        settings, seeds = list(self.values), sorted({r['seed'] for r in found})
        shares = np.array(
            [
                [s == (r['norm'], r['batch']) for s in settings] + [seed == r['seed'] for seed in seeds[1:]]
                for r in found
            ],
            dtype=float,
        )  # fmt: skip
        ap = np.array([r['metrics'][metric] for r in found])
        self.degrees = len(found) - len(settings) - len(seeds[1:])
        self.residuals = np.zeros(0)
        if self.degrees > 0:
            self.residuals = ap - shares @ np.linalg.lstsq(shares, ap)[0]
            self.residuals *= math.sqrt(len(ap) / self.degrees)

    @property
    def spread(self) -> float:
        """Standard deviation of a run, its seed's share taken out."""
        return float(np.sqrt(np.mean(self.residuals**2)))

    def pairs(self, first: tuple, second: tuple) -> list[float]:
        """Differences of the settings (norm, batch), one for each seed that both have."""
        a, b = (self.values.get(which, {}) for which in (first, second))
        return [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]

    def interval(self, values: Sequence[float], runs: int = 2) -> tuple[float, float, float]:
        """Mean of paired differences and the ends of its 95 % interval, by a bootstrap of the residuals.

        As many are drawn as ``runs`` a seed, and the interval is as much wider as Student's t is than the normal
        distribution, since the residuals are few. ``runs=1`` is for a setting's own mean. Where all settings have
        one seed they are nan.
        """
        mean, n = statistics.fmean(values), len(values)
        if self.degrees <= 0:
            return mean, math.nan, math.nan
        drawn = np.random.default_rng(0).choice(self.residuals, (RESAMPLES, runs, n)).mean(-1)
        error = (drawn[:, 0] - drawn[:, 1:].sum(1)) * students(self.degrees) / students(math.inf)
        low, high = np.quantile(error, [0.025, 0.975])
        return mean, mean - high, mean - low

    def shown(self, values: Sequence[float]) -> tuple[str, str]:
        """The interval, and what it says."""
        mean, low, high = self.interval(values)
        if self.degrees <= 0:
            return f'{mean:+.1f}', 'one seed'
        says = f'no difference above {max(-low, high):.1f}'
        if low > 0 or high < 0:
            says = '**higher**' if mean > 0 else '**lower**'
        return f'{mean:+.1f} ({low:+.1f} to {high:+.1f})', says


def students(degrees: float) -> float:
    """The 97.5 % point of Student's t (Abramowitz and Stegun, 26.7.5): within 2 % from 4 degrees on."""
    z = statistics.NormalDist().inv_cdf(0.975)
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def ap_table(found: Sequence[dict], markdown: Callable, spread: Callable, norms: Sequence[str] = NORMS) -> str:
    rows = []
    for metric, batch in itertools.product(METRICS, BATCHES):
        runs = Runs(found, metric)
        values = [list(runs.values.get((norm, batch), {}).values()) for norm in norms]
        cells = [spread(v) if v else '' for v in values]
        rows.append([METRICS[metric], str(batch), *cells])
    return markdown(['', 'batch', *norms], rows)


def difference_table(found: Sequence[dict], markdown: Callable, pairs: Iterable[tuple[str, str]] = PAIRS) -> str:
    """Of each pair of norms, where there are runs of both."""
    by_metric = [Runs(found, metric) for metric in PRIMARY]
    rows = []
    for (first, second), batch in itertools.product(pairs, BATCHES):
        differences = [runs.pairs((first, batch), (second, batch)) for runs in by_metric]
        if differences[0]:
            cells = [text for runs, values in zip(by_metric, differences) for text in runs.shown(values)]
            rows.append([f'{first} - {second}', str(batch), *cells, str(len(differences[0]))])
    return markdown(['', 'batch', 'box AP', '', 'mask AP', '', 'seeds'], rows)


def paired_table(found: Sequence[dict], markdown: Callable, pairs: Iterable[tuple[str, str]] = PAIRS) -> str:
    """The same differences with intervals of Student's t from their own spread, where settings differ in it.

    Pairs with fewer than three seeds are left out.
    """
    by_metric = [Runs(found, metric) for metric in PRIMARY]
    rows = []
    for (first, second), batch in itertools.product(pairs, BATCHES):
        cells, differences = [], [runs.pairs((first, batch), (second, batch)) for runs in by_metric]
        if len(differences[0]) < 3:
            continue
        for values in differences:
            mean = statistics.fmean(values)
            half = students(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
            cells.append(f'{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f})')
        rows.append([f'{first} - {second}', str(batch), *cells])
    return markdown(['', 'batch', 'box AP', 'mask AP'], rows)


def changed_from(record: dict) -> str:
    """The norm of the grid that a record of part 'why' is compared with."""
    return VARIANTS.get(record['norm'], (record['norm'],))[0]


def why_table(
    changed: Sequence[dict], markdown: Callable, grid: Sequence[dict], table: Callable = difference_table
) -> str:
    """What one changed setting brings, against the grid's run of the same seed and batch."""
    named = [dict(r, norm=_name(r)) for r in changed]
    pairs = sorted({(_name(r), changed_from(r)) for r in changed})
    return table([*grid, *named], markdown, pairs)


def _name(record: dict) -> str:
    changed = record['norm'] in VARIANTS
    return record['norm'] if changed else f'{record["norm"]} at {record["rate"]:g}'


def precise_table(changed: Sequence[dict], markdown: Callable) -> str:
    """AP with PreciseBN less AP with running averages, of the same weights: mean, lowest and highest of the runs."""
    rows = []
    for norm, batch in itertools.product(sorted({r['norm'] for r in changed}), BATCHES):
        own = [r for r in changed if (r['norm'], r['batch']) == (norm, batch)]
        if own:
            gains = [[r['precise'][metric] - r['metrics'][metric] for r in own] for metric in PRIMARY]
            cells = [f'{statistics.fmean(g):+.2f} ({min(g):+.2f} to {max(g):+.2f})' for g in gains]
            rows.append([norm, str(batch), *cells, str(len(own))])
    return markdown(['norm', 'batch', *(METRICS[metric] for metric in PRIMARY), 'runs'], rows)


PARTS_OF_MODEL = {'FPN': 'neck', 'box head': 'roi_head.bbox_head', 'mask head': 'roi_head.mask_head'}


def statistics_table(found: Sequence[dict], markdown: Callable) -> str:
    """Medians over the layers of a part of the model: errors of the variance and the mean that a batch gives."""
    rows = []
    for r, (part, prefix) in itertools.product(found, PARTS_OF_MODEL.items()):
        layers = [layer for name, layer in r['layers'].items() if name.startswith(prefix)]
        cells = [
            f'{100 * statistics.median(layer["errors"][norm][what] for layer in layers):.1f}'
            for what, norm in itertools.product(('var', 'mean'), ('BN', 'naive', 'CBN'))
        ]
        rows.append([f'{r["norm"]}, batch {r["trained_batch"]}', str(r['batch']), part, *cells])
    head = [f'{what}: {norm}' for what in ('variance', 'mean') for norm in ('BN', 'naive', 'CBN')]
    return markdown(['trained with', 'batch', 'layers', *head], rows)


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


def grids() -> dict[str, list[dict]]:
    return {part: whole_seeds(records(RESULTS, part)) for part in GRIDS}


def tables(markdown: Callable, spread: Callable) -> dict[str, str]:
    """By the names of their places in the pages; `markdown` and `spread` are those of projects/norm_study/report.py."""

    def table(of: Callable, found: Sequence[dict], *args) -> str:
        return of(found, markdown, *args) if found else NOT_RUN

    made, whole = {}, grids()
    names = {part: 'imagenet' if part == 'primary' else f'imagenet-{part}' for part in GRIDS}
    for part, found in whole.items():
        name = names[part]
        made[f'{name}-ap'] = table(ap_table, found, spread)
        made[f'{name}-differences'] = table(difference_table, found)
    for part, of in WHY.items():
        changed, grid = records(RESULTS, part), records(RESULTS, of)
        name = names[of]
        made[f'{name}-why'] = table(why_table, changed, grid)
        made[f'{name}-why-paired'] = table(why_table, changed, grid, paired_table)
        made[f'{name}-precise'] = table(precise_table, changed)
    made['imagenet-nuclei-paired'] = table(paired_table, whole['nuclei'])
    backbones = whole_seeds(records(RESULTS, 'backbone'), BACKBONES)
    return made | {
        'imagenet-backbone-ap': table(ap_table, backbones, spread, BACKBONES),
        'imagenet-backbone-differences': table(difference_table, backbones, BACKBONE_PAIRS),
        'imagenet-statistics': table(statistics_table, records(RESULTS, 'statistics')),
        'imagenet-nuclei-statistics': table(statistics_table, records(RESULTS, 'nuclei_statistics')),
        'imagenet-rates': table(rate_table, records(RESULTS, 'lr')),
        'imagenet-costs': table(cost_table, records(RESULTS, 'primary')),
    }


def draw(folder: Path) -> None:
    parts = {part: found for part, found in grids().items() if found}
    draw_ap(parts, folder / 'imagenet_ap.png')
    draw_differences(parts, folder / 'imagenet_differences.png')


def _title(part: str, found: Sequence[dict]) -> str:
    seeds = len({r['seed'] for r in found})
    return f'{GRIDS[part]}, {SCALES[False].epochs[part]} epochs, {seeds} seed{"s" * (seeds > 1)}'


def draw_ap(parts: dict[str, Sequence[dict]], path: Path) -> None:
    """AP against batch size, single runs as points, with intervals: a row of axes for each part of the study."""
    figure, axes = plt.subplots(len(parts), 2, figsize=(9, 3.4 * len(parts) + 0.4), squeeze=False, layout='constrained')
    for line, (part, found) in zip(axes, parts.items()):
        for axis, metric in zip(line, PRIMARY):
            _draw_one(axis, Runs(found, metric))
            axis.set(ylabel=f'{METRICS[metric]}, %', title=_title(part, found))
    for axis in axes[-1]:
        axis.set_xlabel('images per step')
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc='outside right center')
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _draw_one(axis: plt.Axes, runs: Runs) -> None:
    for place, norm in enumerate(NORMS):
        values = {b: list(of.values()) for b in BATCHES if (of := runs.values.get((norm, b)))}
        if values:
            mean, low, high = zip(*(runs.interval(v, runs=1) for v in values.values()))
            across = [BATCHES.index(b) + (place - (len(NORMS) - 1) / 2) * 0.07 for b in values]
            for x, single in zip(across, values.values()):
                axis.scatter([x + 0.02] * len(single), single, s=5, color=COLOURS[norm], alpha=0.5)
            axis.errorbar(
                across, mean,
                [[m - a for m, a in zip(mean, low)], [b - m for m, b in zip(mean, high)]],
                marker='o', capsize=3, label=norm, color=COLOURS[norm],
            )  # fmt: skip
    axis.set_xticks(range(len(BATCHES)), BATCHES)
    axis.set_xlim(-0.4, len(BATCHES) - 0.6)
    axis.grid(axis='y', alpha=0.3)


def draw_differences(parts: dict[str, Sequence[dict]], path: Path) -> None:
    """What changes what: paired differences with their intervals, those that hold 0 in grey. A column for each part."""
    compared = [(f'{a} - {b}, batch {n}', (a, n), (b, n)) for a, b in PAIRS for n in BATCHES]
    compared += [(f'{norm}: batch 2 - batch 1', (norm, 2), (norm, 1)) for norm in NORMS]
    size = 2.5 + 3 * len(parts), 0.36 * len(compared) + 1.4
    figure, axes = plt.subplots(1, len(parts), figsize=size, sharey=True, squeeze=False, layout='constrained')
    markers = dict(zip(PRIMARY, 'os'))
    for axis, (part, found) in zip(axes[0], parts.items()):
        for (metric, marker), shift in zip(markers.items(), (-0.16, 0.16)):
            runs = Runs(found, metric)
            for row, (_, *pair) in enumerate(compared):
                mean, low, high = runs.interval(runs.pairs(*pair))
                colour = 'tab:green' if low > 0 else 'tab:red' if high < 0 else 'grey'
                axis.errorbar(
                    mean, row + shift, xerr=[[mean - low], [high - mean]],
                    marker=marker, markersize=5, capsize=2, color=colour,
                )  # fmt: skip
        axis.axvline(0, color='black', linewidth=0.8)
        axis.set_yticks(range(len(compared)), [name for name, *_ in compared])
        axis.set(title=_title(part, found), xlabel='difference of AP', ylim=(len(compared) - 0.5, -0.5))
        axis.grid(axis='x', alpha=0.3)
    handles = [plt.Line2D([], [], marker=m, color='grey', label=METRICS[metric]) for metric, m in markers.items()]
    figure.legend(handles=handles, loc='outside upper right', ncols=2)
    figure.savefig(path, dpi=90)
    plt.close(figure)
