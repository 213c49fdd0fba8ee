"""Draw a run's losses, learning rate and AP over time."""

import json
from collections.abc import Sequence
from pathlib import Path

from mmdet.cli.parser import Parser
from mmdet.config.errors import UserError


def read_log(work_dir: Path) -> tuple[dict[int, dict], dict[int, dict]]:
    """The logged scalars of a run and its resumed parts: {iteration: losses, lr}, {epoch: metrics}.

    Raises:
        UserError: no log there, or none with a training iteration.
    """
    train, val = {}, {}
    logs = sorted(work_dir.glob('*/vis_data/scalars.json'))  # folders are named by their time
    for path in logs:
        for line in path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue  # the last line of a killed run
            if 'loss' in entry:
                train[entry['iter']] = entry
            elif any(metric_of(k) for k in entry):
                val[entry['step']] = entry
    if not train:
        raise UserError(f'{work_dir} holds no log of a training' + ('' if logs else ' (no */vis_data/scalars.json)'))
    return dict(sorted(train.items())), dict(sorted(val.items()))


STYLES = {'mAP': '-', 'mAP_50': '--', 'mAP_75': ':', 'AP50': '--', 'AP75': ':'}
COLOURS = {'bbox': 'tab:blue', 'segm': 'tab:orange', 'proposal': 'tab:green', '': 'tab:purple'}


def metric_of(key: str) -> tuple[str, str] | None:
    """('bbox', 'mAP_50') of 'coco/bbox_mAP_50'; None for what is not drawn.

    >>> metric_of('coco/bbox_mAP_50'), metric_of('pascal_voc/mAP'), metric_of('coco/bbox_mAP_s')
    (('bbox', 'mAP_50'), ('', 'mAP'), None)
    """
    name = key.rpartition('/')[2]
    kind = next((kind for kind in COLOURS if kind and name.startswith(f'{kind}_')), '')
    level = name.removeprefix(f'{kind}_')
    return (kind, level) if level in STYLES else None


def draw(train: dict[int, dict], val: dict[int, dict], path: Path, title: str) -> None:
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    plt.rcParams.update({'axes.spines.top': False, 'axes.spines.right': False, 'axes.grid': True, 'grid.alpha': 0.3,
                         'font.size': 10})  # fmt: skip
    figure = plt.figure(figsize=(12, 5.5), layout='constrained')
    figure.suptitle(title)
    grid = figure.add_gridspec(2, 2, height_ratios=(3.5, 1))
    loss = figure.add_subplot(grid[0, 0])
    draw_losses(train, loss, figure.add_subplot(grid[1, 0], sharex=loss))
    by_epoch = max(val, default=0) <= max(entry.get('epoch', 0) for entry in train.values())
    draw_ap(val, figure.add_subplot(grid[:, 1]), 'epoch' if by_epoch else 'iteration')
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_losses(train: dict[int, dict], axes, lr) -> None:
    """The losses, and the learning rate below."""
    steps = list(train)
    mark = dict(marker='o', markersize=3) if len(steps) < 3 else {}
    names = dict.fromkeys(k for entry in train.values() for k in entry if 'loss' in k and k != 'loss')
    for name in names:
        axes.plot(steps, [train[s].get(name, float('nan')) for s in steps], linewidth=1, alpha=0.8, label=name, **mark)
    axes.plot(steps, [train[s]['loss'] for s in steps], color='black', linewidth=1.8, label='loss', **mark)
    axes.set(ylabel='loss (mean of the window)', ylim=(0, None))
    axes.tick_params(labelbottom=False)
    above(axes, columns=4)
    lr.plot(steps, [train[s].get('lr', float('nan')) for s in steps], color='tab:grey', linewidth=1, **mark)
    lr.set(xlabel='iteration', ylabel='learning rate', ylim=(0, None))


def draw_ap(val: dict[int, dict], axes, steps: str) -> None:
    """AP over time in percent; of one evaluation, a bar for each number."""
    metrics = sorted({k for entry in val.values() for k in entry if metric_of(k)})
    if not metrics:
        axes.set_axis_off()
        axes.text(0.5, 0.5, 'no validation yet', transform=axes.transAxes, ha='center', color='grey')
        return
    # COCO says -1 where there is nothing to count
    values = {k: [100 * v if (v := e.get(k, -1)) >= 0 else float('nan') for e in val.values()] for k in metrics}
    labels = {k: ' '.join(metric_of(k)).replace('mAP_', 'AP').replace('mAP', 'AP').strip() for k in metrics}
    if len(val) == 1:
        numbers = [values[k][0] for k in metrics]
        bars = axes.barh([labels[k] for k in metrics], numbers, color=[COLOURS[metric_of(k)[0]] for k in metrics])
        axes.bar_label(bars, fmt='%.1f', padding=4)
        axes.set(xlabel=f'AP on the validation set (0-100), {steps} {next(iter(val))}', xlim=(0, 100))
        axes.invert_yaxis()
        axes.grid(False)
        return
    for k in metrics:
        kind, level = metric_of(k)
        axes.plot(list(val), values[k], STYLES[level], color=COLOURS[kind], marker='o', markersize=3, label=labels[k])
    highest = max((v for row in values.values() for v in row if v == v), default=0)
    axes.set(xlabel=steps, ylabel='AP on the validation set (0-100)', ylim=(0, min(100, max(10, 1.15 * highest))))
    axes.xaxis.get_major_locator().set_params(integer=True)
    above(axes, columns=3)


def above(axes, columns: int) -> None:
    """The legend, where no curve is."""
    axes.legend(fontsize=8, frameon=False, loc='lower left', bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2)


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser("Draw a run's losses, learning rate and AP over time.",
                    ['work_dirs/my_run', 'work_dirs/my_run --out curves.png'])  # fmt: skip
    parser.add_argument('work_dir', type=Path, help='the folder of a run; all its resumed parts are drawn')
    parser.add_argument('-o', '--out', type=Path, help='image to write (default: WORK_DIR/curves.png)')
    args = parser.parse_args(argv)
    train, val = read_log(args.work_dir)
    out = args.out or args.work_dir / 'curves.png'
    draw(train, val, out, args.work_dir.resolve().name)
    print(f'{len(train)} logged iterations, {len(val)} evaluations: {out}')
