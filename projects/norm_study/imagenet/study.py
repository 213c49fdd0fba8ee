"""Image classification with small batches: ResNet-18 on ImageNet, one norm everywhere.

    python -m projects.norm_study.imagenet.study --data DIR --out work_dirs/norm_study_imagenet --gpus 4

DIR holds train/ and val/, with a folder of images for each class. A cell is one norm and one batch size per process; it
trains by `mmdet train` in OUT/NORM-bBATCH, and its record is OUT/NORM-bBATCH.json. The command can be killed at any
time: a finished cell is not run again, and one that was begun goes on from its newest checkpoint. In the end, and
whenever it is called with nothing left to do, it prints the table.
"""

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from mmdet.config.output import write_atomically

HERE = Path(__file__).resolve().parent
CONFIG = HERE / 'resnet18.py'
BATCHES = (32, 16, 8, 4, 2)
BURNIN = 0.08  # of the epochs, of CBN in the paper's form
NORMS = {
    'BN': dict(type='BN'),
    'GN': dict(type='GN', num_groups=32),
    'BRN': dict(type='BatchRenorm'),
    'naive': dict(type='CBN', buffer_num=3, rho=0.0),
    'CBN': dict(type='CBN', buffer_num=3),
    'CBN-full': dict(type='CBN', buffer_num=3, full_gradient=True),
}
BURNT_IN = 'naive', 'CBN'


class Cell(NamedTuple):
    norm: str
    batch: int  # images of a process

    def __str__(self) -> str:
        return f'{self.norm}-b{self.batch}'

    def options(self, args: argparse.Namespace) -> dict:
        """What differs from the config."""
        norm = dict(NORMS[self.norm])
        if self.norm in BURNT_IN:
            norm['burnin'] = max(round(BURNIN * args.epochs), 1)
        milestones = [max(round(args.epochs * share), 1) for share in (0.3, 0.6, 0.9)]
        return {
            'data_root': f'{args.data}/',
            **{f'{part}_dataloader.dataset.size': args.size for part in ('train', 'val')},
            'model.num_classes': len(classes(args.data)),
            'train_dataloader.batch_size': self.batch,
            'train_cfg.max_epochs': args.epochs,
            'param_scheduler.0.milestones': milestones,
            **{f'norm_cfg.{key}': value for key, value in norm.items()},
        }


def classes(data: Path) -> list[str]:
    """The folders of both parts, which must agree, or labels would mean two things."""
    found = [sorted(path.name for path in (data / part).glob('*/')) for part in ('train', 'val')]
    if not found[0] or found[0] != found[1]:
        raise SystemExit(
            f'--data {data}: train/ has {len(found[0])} folders of classes and val/ {len(found[1])}; each needs the '
            'same ones, at least one'
        )
    return found[0]


def run(cell: Cell, args: argparse.Namespace) -> dict:
    """Train, or go on training, and return the record."""
    folder = args.out / str(cell)
    options = [f'{key}={value}' for key, value in cell.options(args).items()]
    command = [sys.executable, '-m', 'mmdet', 'train', str(CONFIG), '--work-dir', str(folder), '--resume']
    command += ['--gpus', str(args.gpus), '--seed', str(args.seed), '--auto-scale-lr', '--cfg-options', *options]
    status = subprocess.run([*command, *args.cfg_options]).returncode
    if status:
        raise SystemExit(f'{cell}: training ended with status {status}, see above; called again, this goes on with it')
    return dict(cell._asdict(), **settings(args), **accuracy(folder, args.epochs))


def settings(args: argparse.Namespace) -> dict:
    """What cells of one table have in common."""
    return dict(gpus=args.gpus, epochs=args.epochs, size=args.size, seed=args.seed)


def accuracy(folder: Path, epoch: int) -> dict[str, float]:
    """What the log of a run, or of its resumed parts, says of an epoch."""
    logs = sorted(folder.glob('*/vis_data/scalars.json'))  # folders are named by their time
    entries = [json.loads(line) for log in logs for line in log.read_text().splitlines() if '"top1"' in line]
    (*_, last) = [entry for entry in entries if entry['step'] == epoch]
    return {name: round(last[name], 3) for name in ('top1', 'top5')}


def table(records: list[dict]) -> str:
    """Top-1 accuracy of the last epoch, by images a process."""
    found = {(r['norm'], r['batch']): r['top1'] for r in records}
    batches = sorted({batch for _, batch in found}, reverse=True)
    lines = [['top-1, %', *map(str, batches)], ['---'] * (len(batches) + 1)]
    for norm in NORMS:
        lines.append([norm, *(f'{found[norm, b]:.1f}' if (norm, b) in found else '' for b in batches)])
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, required=True, help='folder with train/ and val/')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/norm_study_imagenet'))
    parser.add_argument('--norms', nargs='+', choices=NORMS, default=list(NORMS))
    parser.add_argument('--batches', nargs='+', type=int, default=BATCHES, help='images of a process')
    parser.add_argument('--gpus', type=int, default=1, help='processes')
    parser.add_argument('--epochs', type=int, default=100)
    parser.add_argument('--size', type=int, default=224, help='pixels of a side')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--cfg-options', nargs='+', default=[], help="more of `mmdet train`'s, such as KEY=VALUE")
    args = parser.parse_args()
    for cell in itertools.starmap(Cell, itertools.product(args.norms, args.batches)):
        file = args.out / f'{cell}.json'
        if not file.exists():
            write_atomically(file, (json.dumps(run(cell, args)) + '\n').encode())
    records = [json.loads(file.read_text()) for file in sorted(args.out.glob('*.json'))]
    for record in records:
        if settings(args).items() - record.items():
            raise SystemExit(f'{args.out} holds cells of other settings, {record}: use another --out')
    print(table(records))


if __name__ == '__main__':
    main()
