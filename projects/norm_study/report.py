"""Tables and figures of this folder's pages from results/*.json.

    python -m projects.norm_study.report

Each table replaces what stands between ``<!-- NAME -->`` and ``<!-- /NAME -->`` in a page of this folder;
the text around it is left alone. The figures go to figures/.
"""

import argparse
import itertools
import json
import math
import re
import statistics
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt

from .classify import BATCHES, NORMS, REGIMES, RESULTS
from .detection import report as imagenet

HERE = Path(__file__).resolve().parent
COLOURS = dict(zip(NORMS, 'tab:blue grey tab:purple tab:orange tab:red hotpink darkred saddlebrown'.split()))
DETECTION_NORMS = ('none', 'BN', 'SyncBN', 'GN', 'naive', 'CBN', 'CBN-full')
DEFAULTS = dict(burnin=1, window=4, lr_factor=1.0)


def spread(values: list[float], digits: int = 1) -> str:
    deviation = f' ± {statistics.stdev(values):.{digits}f}' if len(values) > 1 else ''
    return f'{statistics.mean(values):.{digits}f}{deviation}'


def paired(values: list[float], others: list[float], digits: int = 1) -> str:
    """Mean difference over the seeds and its standard error."""
    differences = [a - b for a, b in zip(values, others)]
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return f'{statistics.mean(differences):+.{digits}f} ± {error:.{digits}f}'


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in lines)


def select(records: list[dict], **wanted) -> list[dict]:
    return [r for r in records if all(r[k] == v for k, v in wanted.items())]


def one(records: list[dict], **wanted) -> dict | None:
    found = select(records, **wanted)
    return found[0] if found else None


def main_table(records: list[dict], field: str = 'accuracy') -> str:
    rows = []
    for regime in REGIMES:
        for norm in NORMS:
            cells = [one(records, regime=regime, norm=norm, batch=b, **DEFAULTS) for b in BATCHES]
            if any(cells):
                rows.append([regime, norm, *(spread(c[field]) if c else '' for c in cells)])
    return markdown(['regime', 'norm', *(f'batch {b}' for b in BATCHES)], rows)


def batch_1_table(records: list[dict]) -> str:
    """Every norm at batch 1 beside BatchNorm at the batch that serves it best."""
    rows = []
    for regime in REGIMES:
        cells = [one(records, regime=regime, norm=n, batch=1, **DEFAULTS) for n in NORMS]
        if all(cells):
            large = select(records, regime=regime, norm='BN', **DEFAULTS)
            best = max(large, key=lambda cell: statistics.mean(cell['accuracy']))
            means = [f'{statistics.mean(cell["accuracy"]):.1f}' for cell in [*cells, best]]
            rows.append([regime, *means[:-1], f'{means[-1]} ({best["batch"]})'])
    return markdown(['regime, batch 1', *NORMS, 'BN at its best batch'], rows)


def differences_table(records: list[dict]) -> str:
    others = [n for n in NORMS if n != 'CBN']
    rows = []
    for regime in REGIMES:
        for batch in BATCHES:
            cell = {n: one(records, regime=regime, norm=n, batch=batch, **DEFAULTS) for n in NORMS}
            if not cell['CBN']:
                continue
            row = [regime, str(batch)]
            for norm in others:
                row.append(paired(cell['CBN']['accuracy'], cell[norm]['accuracy']) if cell[norm] else '')
            rows.append(row)
    return markdown(['regime', 'batch', *(f'CBN - {n}' for n in others)], rows)


def evaluation_table(records: list[dict], batch: int = 2) -> str:
    rows = []
    for regime in REGIMES:
        for norm in NORMS:
            cell = one(records, regime=regime, norm=norm, batch=batch, **DEFAULTS)
            if cell and norm != 'GN':
                fields = ('accuracy', 'accuracy_population', 'accuracy_batch')
                rows.append(
                    [
                        regime,
                        norm,
                        *(f'{statistics.mean(cell[f]):.1f}' for f in fields),
                        f'{statistics.mean(cell["train_loss"]):.3f}',
                    ]
                )
    return markdown(
        ['regime', 'norm', 'running averages', "PreciseBN, 'population'", "PreciseBN, 'batch'", 'training loss'], rows
    )  # fmt: skip


def swept_table(records: list[dict], field: str, norms: tuple[str, ...]) -> str:
    """Accuracy over one setting, the others at their defaults."""
    fixed = {k: v for k, v in DEFAULTS.items() if k != field}
    rows, values = [], sorted({r[field] for r in records})
    for regime in REGIMES:
        for norm in norms:
            cells = [one(records, regime=regime, norm=norm, batch=2, **fixed, **{field: v}) for v in values]
            if sum(c is not None for c in cells) > 1:
                rows.append([regime, norm, *(spread(c['accuracy']) if c else '' for c in cells)])
    return markdown(['regime', 'norm', *(f'{v:g}' for v in values)], rows)


def error_table(curves: dict, kind: str) -> str:
    """Medians over the iterations at each learning rate."""
    rows = []
    for key, curve in curves.items():
        regime, batch, factor = key.split('|')
        names = [k.split('|')[1] for k in curve['curve'][0]['var'] if k.startswith(kind)]
        for part, points in parts_of(curve['curve']).items():
            row = [f'{regime}, batch {batch}, lr x {float(factor):g}', part]
            for name in names:
                row.append(f'{statistics.median(p["var"][f"{kind}|{name}"] for p in points):.4f}')
            rows.append(row)
    return markdown(['setting', 'learning rate', *names], rows)


def parts_of(curve: list[dict]) -> dict[str, list[dict]]:
    top = max(p['lr'] for p in curve)
    return {
        'full': [p for p in curve if p['lr'] > 0.5 * top],
        'a tenth': [p for p in curve if 0.05 * top < p['lr'] < 0.5 * top],
    }


def detection_table(records: list[dict]) -> str:
    norms = [n for n in DETECTION_NORMS if select(records, norm=n)]
    rows = []
    for name, metric, batch in itertools.product(
        ('bccd', 'nuclei_dsb2018'), ('bbox_mAP', 'bbox_mAP_50', 'segm_mAP', 'segm_mAP_50'), (1, 2)
    ):
        row = []
        for norm in norms:
            cells = [r for r in select(records, set=name, norm=norm, batch=batch) if metric in r['metrics']]
            row.append(spread([100 * c['metrics'][metric] for c in cells]) if cells else '')
        if any(row):
            rows.append([name, metric, str(batch), *row])
    return markdown(['data', 'metric', 'batch', *norms], rows)


def draw_norms(records: list[dict], path: Path, batch: int = 2) -> None:
    """Every regime at one batch size."""
    shown = [r for r in REGIMES if select(records, regime=r, batch=batch, **DEFAULTS)]
    figure, axis = plt.subplots(figsize=(9, 0.62 * len(shown) + 1), layout='constrained')
    for index, norm in enumerate(NORMS):
        cells = [one(records, regime=r, norm=norm, batch=batch, **DEFAULTS) for r in shown]
        rows = [row + (index - (len(NORMS) - 1) / 2) * 0.09 for row, cell in enumerate(cells) if cell]
        found = [cell['accuracy'] for cell in cells if cell]
        axis.errorbar(
            [statistics.mean(v) for v in found], rows, xerr=[statistics.stdev(v) for v in found],
            fmt='o', markersize=5, elinewidth=1, label=norm, color=COLOURS[norm],
        )  # fmt: skip
    for row in range(1, len(shown)):
        axis.axhline(row - 0.5, color='lightgrey', linewidth=0.8)
    axis.set_yticks(range(len(shown)), shown)
    axis.set(xlabel=f'accuracy at batch {batch}, % (bars: deviation over the seeds)', ylim=(len(shown) - 0.5, -0.5))
    axis.grid(axis='x', alpha=0.3)
    figure.legend(loc='outside right upper')
    figure.savefig(path, dpi=90)
    plt.close(figure)


def draw_batches(records: list[dict], path: Path) -> None:
    shown = [r for r in REGIMES if len({c['batch'] for c in select(records, regime=r, norm='CBN', **DEFAULTS)}) > 1]
    columns = 3
    lines = math.ceil(len(shown) / columns)
    figure, axes = plt.subplots(lines, columns, figsize=(11, 3 * lines), squeeze=False, layout='constrained')
    for axis in axes.flat[len(shown) :]:
        axis.axis('off')
    for axis, regime in zip(axes.flat, shown):
        for place, norm in enumerate(NORMS):
            cells = sorted(select(records, regime=regime, norm=norm, **DEFAULTS), key=lambda c: c['batch'])
            if cells:
                aside = 1.04 ** (place - len(NORMS) / 2)  # so that bars do not hide each other
                axis.errorbar(
                    [c['batch'] * aside for c in cells], [statistics.mean(c['accuracy']) for c in cells],
                    [statistics.stdev(c['accuracy']) for c in cells], label=norm,
                    color=COLOURS[norm], marker='.', elinewidth=0.8,
                )  # fmt: skip
        axis.set(xscale='log', title=regime, xlabel='batch', ylabel='accuracy, %', xlim=(0.8, 40))
        axis.set_xticks(BATCHES, BATCHES)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    handles = {label: h for axis in axes.flat for h, label in zip(*axis.get_legend_handles_labels())}
    figure.legend([handles[n] for n in NORMS if n in handles], [n for n in NORMS if n in handles],
                  loc='outside lower center', ncols=len(handles))
    figure.savefig(path, dpi=80)
    plt.close(figure)


def draw_errors(curves: dict, path: Path) -> None:
    kinds = {
        'own': 'past batches,\nown weights changed', 'weights': "past batches,\nall layers' weights changed",
        'whole': 'past batches,\nwhole network as it is now',
        'population': 'what the layer normalises with,\nagainst the population',
    }  # fmt: skip
    styles = {
        'BatchNorm': ('tab:blue', '-'), 'naive': ('tab:orange', '-'), 'Taylor, all positions': ('tab:red', '-'),
        'root': ('tab:pink', '--'), 'Taylor, 1/4 of them': ('tab:brown', ':'),
        'Taylor, 1/16 of them': ('tab:olive', ':'),
        'pooled true': ('black', '--'),
    }  # fmt: skip
    figure, axes = plt.subplots(
        len(curves), 4, figsize=(13, 2.7 * len(curves) + 0.6), squeeze=False, sharex='row', layout='constrained'
    )
    for axis, title in zip(axes[0], kinds.values()):
        axis.set_title(title, fontsize=11)
    for line, (key, curve) in zip(axes, curves.items()):
        for axis, kind in zip(line, kinds):
            for name, (colour, style) in styles.items():
                if f'{kind}|{name}' in curve['curve'][0]['var']:
                    axis.plot(
                        [p['step'] for p in curve['curve']],
                        [max(p['var'][f'{kind}|{name}'], 1e-5) for p in curve['curve']],
                        color=colour, linestyle=style, label=name,
                    )  # fmt: skip
            axis.set(yscale='log')
            axis.grid(alpha=0.3)
        line[0].set_ylabel('{}, batch {}\nrelative error of the variance'.format(*key.split('|')[:2]))
    for axis in axes[-1]:
        axis.set_xlabel('iteration')
    handles = {label: h for axis in axes[0] for h, label in zip(*axis.get_legend_handles_labels())}
    figure.legend([handles[n] for n in styles], styles, loc='outside lower center', ncols=len(styles))
    figure.savefig(path, dpi=80)
    plt.close(figure)


def replace(documents: dict[Path, str], name: str, content: str) -> None:
    """Put a table into its place in the one document that has it."""
    pattern = re.compile(rf'(<!-- {name} -->\n).*?(\n?<!-- /{name} -->)', re.S)
    (path,) = (path for path, text in documents.items() if pattern.search(text))
    documents[path] = pattern.sub(lambda match: match[1] + content + '\n' + match[2].lstrip('\n'), documents[path])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--results', type=Path, default=RESULTS)
    parser.add_argument('--pages', type=Path, default=HERE, help='folder of the pages and figures to update')
    parser.add_argument('--print', action='store_true', help='print the main tables of other results; write nothing')
    args = parser.parse_args()
    records = list(json.loads((args.results / 'classify.json').read_text()).values())
    if args.print:
        print(main_table(records), differences_table(records), sep='\n\n')
        return
    curves = json.loads((args.results / 'statistics_error.json').read_text())
    detection = list(json.loads((args.results / 'detect.json').read_text()).values())
    from_scratch = [r for r in detection if 'backbone' not in r]
    pooling = ('naive', 'CBN', 'CBN-root', 'CBN-full')
    tables = {
        'main': main_table(records),
        'batch-1': batch_1_table(records),
        'differences': differences_table(records),
        'evaluation': evaluation_table(records),
        'window': swept_table(records, 'window', pooling),
        'burnin': swept_table(records, 'burnin', pooling),
        'lr': swept_table(records, 'lr_factor', ('BN', 'GN', *pooling)),
        **{f'error-{kind}': error_table(curves, kind) for kind in ('own', 'weights', 'whole', 'population')},
        **{f'detection-{n}': detection_table(select(from_scratch, epochs=n)) for n in (4, 12)},
        'detection-pretrained': detection_table([r for r in detection if 'backbone' in r]),
    }
    tables |= imagenet.tables(markdown, spread)
    documents = {path: path.read_text() for path in args.pages.glob('*.md')}
    for name, content in tables.items():
        replace(documents, name, content)
    for path, text in documents.items():
        path.write_text(text)
    draw_norms(records, args.pages / 'figures' / 'norms.png')
    draw_batches(records, args.pages / 'figures' / 'batches.png')
    imagenet.draw(args.pages / 'figures')
    shown = {k: curves[k] for k in ('digits|4|1.0', 'digits-fc|4|1.0', 'digits-one-fast|4|1.0') if k in curves}
    draw_errors(shown, args.pages / 'figures' / 'statistics.png')


if __name__ == '__main__':
    main()
