"""Draw a run's losses, learning rate and AP over time: python tools/dev/plot_curves.py WORK_DIR [-o PNG]"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mmdet.cli.parser import Parser
from mmdet.config.errors import UserError, run_main


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
            elif any(isinstance(v, float) and 'AP' in k for k, v in entry.items()):
                val[entry['step']] = entry
    if not train:
        raise UserError(f'{work_dir} holds no log of a training' + ('' if logs else ' (no */vis_data/scalars.json)'))
    return dict(sorted(train.items())), dict(sorted(val.items()))


def draw(train: dict[int, dict], val: dict[int, dict], path: Path, title: str) -> None:
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    plt.rcParams.update({'axes.spines.top': False, 'axes.spines.right': False, 'axes.grid': True, 'grid.alpha': 0.3,
                         'font.size': 10})  # fmt: skip
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), layout='constrained')
    figure.suptitle(title)
    steps = list(train)
    names = [k for k in next(iter(train.values())) if 'loss' in k and k != 'loss']
    for name in names:
        left.plot(steps, [train[s].get(name, float('nan')) for s in steps], linewidth=1, alpha=0.8, label=name)
    left.plot(steps, [train[s]['loss'] for s in steps], color='black', linewidth=1.8, label='loss')
    left.set(xlabel='iteration', ylabel='loss (mean of the logging window)', ylim=(0, None))
    left.legend(fontsize=8, frameon=False)
    lr = left.twinx()
    lr.plot(steps, [train[s].get('lr', float('nan')) for s in steps], color='grey', linewidth=0.8, linestyle=':')
    lr.set_ylabel('learning rate (dotted)', color='grey')
    lr.grid(False)
    lr.tick_params(length=0, labelcolor='grey')  # without an axis line a tick looks like a minus sign
    lr.set_ylim(0, None)

    shown = ('mAP', 'mAP_50', 'mAP_75')
    metrics = sorted({k for entry in val.values() for k in entry if k.split('bbox_')[-1].split('segm_')[-1] in shown})
    colours = {'bbox': 'tab:blue', 'segm': 'tab:orange'}
    styles = {'mAP': '-', 'mAP_50': '--', 'mAP_75': ':'}
    for name in metrics:
        kind = 'segm' if 'segm' in name else 'bbox'
        level = next(k for k in sorted(shown, key=len, reverse=True) if name.endswith(k))
        right.plot(list(val), [e.get(name, float('nan')) for e in val.values()], styles[level], color=colours[kind],
                   marker='o', markersize=3, label=name.split('/')[-1])  # fmt: skip
    right.set(xlabel='epoch', ylabel='AP on the validation set', ylim=(0, 1))
    right.xaxis.get_major_locator().set_params(integer=True)
    if metrics:
        right.legend(fontsize=8, frameon=False, loc='best')
    else:
        right.text(0.5, 0.5, 'no validation yet', transform=right.transAxes, ha='center', color='grey')
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = Parser("Draw a run's losses, learning rate and AP over time.")
    parser.add_argument('work_dir', type=Path)
    parser.add_argument('-o', '--out', type=Path, help='image to write (default: WORK_DIR/curves.png)')
    args = parser.parse_args()
    train, val = read_log(args.work_dir)
    out = args.out or args.work_dir / 'curves.png'
    draw(train, val, out, args.work_dir.resolve().name)
    print(f'{len(train)} logged iterations, {len(val)} evaluations: {out}')


if __name__ == '__main__':
    run_main(main)
