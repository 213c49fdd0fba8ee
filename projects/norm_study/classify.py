"""The norm study on small images: accuracy by norm, batch size, window, burn-in and learning rate.

    python -m projects.norm_study.classify --data DIR             everything; finished cells are not run again
    python -m projects.norm_study.classify --sections main --regimes digits --batches 2 8

A cell is one norm under one setting, trained with several seeds side by side (nets.py). Results go to
results/classify.json, one record a cell. DIR holds bccd/ and coco_dev/; without it their regimes are left out
and named.
"""

import argparse
import copy
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdet.engine.hooks import precise_statistics

from .data import Images, batches, load
from .nets import SideBySide

RESULTS = Path(__file__).parent / 'results'
EPOCHS = 12  # the 1x schedule in miniature: the rate falls to a tenth after epochs 8 and 11
SAMPLES = 2048  # images that every cell sees
BASE_BATCH = 16  # a regime's learning rate is that of batch 16; other batches' are in proportion
BATCHES = (1, 2, 4, 8, 16, 32)

# channels, kernel, stride, padding of each convolution
NETS = {
    'one': ((128, 8, 1, 0),),  # one hidden linear layer: 8x8 px to 1x1
    'maps': ((16, 3, 1, 1), (32, 3, 2, 1), (32, 3, 1, 1), (32, 3, 2, 1), (32, 3, 1, 1)),  # 8x8 px to 2x2
    'fc': ((64, 8, 1, 0), (64, 1, 1, 0), (64, 1, 1, 0), (64, 1, 1, 0)),  # linear layers: 8x8 px to 1x1
    'crops': ((16, 3, 2, 1), (32, 3, 2, 1), (32, 3, 1, 1), (32, 3, 2, 1), (32, 3, 1, 1)),  # 16x16 px to 2x2
}


class Regime(NamedTuple):
    note: str
    data: str
    net: str
    order: str  # what the images of one batch share: 'iid' (nothing), 'class' or 'photo'
    lr: float
    weight_decay: float = 1e-4


REGIMES = {
    'digits': Regime('digits, independent, maps of 8x8 to 2x2', 'digits', 'maps', 'iid', 0.1),
    'digits-fc': Regime('digits, fully connected: one position per image', 'digits', 'fc', 'iid', 0.1),
    'digits-one': Regime('digits, one fully connected hidden layer', 'digits', 'one', 'iid', 0.1),
    'digits-fast': Regime(
        'digits, learning rate x 4, weight decay x 100', 'digits', 'maps', 'iid', 0.4, 1e-2
    ),
    'digits-one-fast': Regime(
        'digits-one, learning rate x 4, decay x 100', 'digits', 'one', 'iid', 0.4, 1e-2
    ),
    'digits-class': Regime(
        'digits, all images of a batch show the same digit', 'digits', 'maps', 'class', 0.1
    ),
    'cells': Regime('blood cells, independent crops', 'cells', 'crops', 'iid', 0.1),
    'cells-photo': Regime(
        'blood cells, all crops of a batch from one photograph', 'cells', 'crops', 'photo', 0.1
    ),
    'cells-even-photo': Regime(
        'as cells-photo, each photograph brought to one mean and deviation', 'cells-even', 'crops', 'photo', 0.1
    ),
    'coco': Regime('COCO objects, independent crops', 'coco', 'crops', 'iid', 0.1),
    'coco-photo': Regime(
        'COCO objects, all crops of a batch from one photograph', 'coco', 'crops', 'photo', 0.1
    ),
}


NORMS = ('BN', 'GN', 'BatchRenorm', 'naive', 'CBN', 'CBN-root', 'CBN-full', 'CBN-root-full')


class Setting(NamedTuple):
    regime: str
    norm: str
    batch: int
    burnin: int = 1  # epochs
    window: int = 4  # batches, the current one included
    lr_factor: float = 1.0

    def key(self) -> str:
        return '|'.join(str(value) for value in self)


def norm_cfg(setting: Setting, epoch_iters: float) -> dict:
    name = setting.norm
    if name == 'GN':
        return dict(type='GN', num_groups=4)
    if name == 'BatchRenorm':
        # BatchNorm's momentum: the paper's 0.01 does not converge in the 96 iterations of batch 32.
        schedule = dict(warmup_iters=round(epoch_iters), ramp_iters=round(2 * epoch_iters))
        return dict(type='BatchRenorm', momentum=0.1, **schedule)
    cbn = dict(
        type='CBN',
        buffer_num=setting.window - 1,
        burnin=None,
        burnin_iters=round(setting.burnin * epoch_iters),
    )
    return {
        'BN': dict(type='BN'),
        'naive': dict(cbn, rho=0.0),
        'CBN': cbn,
        'CBN-root': dict(cbn, compensation='root'),
        'CBN-full': dict(cbn, full_gradient=True),
        'CBN-root-full': dict(cbn, compensation='root', full_gradient=True),
    }[name]


def accuracy(model: SideBySide, data: Images, classes: int) -> list[float]:
    """Mean over the classes of the share of their images that are classified correctly, %, for each run."""
    model.eval()
    with torch.no_grad():
        right = [
            model(_side_by_side(images[:, None], model.runs)).argmax(2) == labels[:, None]
            for images, labels in zip(data.images.split(128), data.labels.split(128))
        ]
    right = torch.cat(right).double()
    recalls = [right[data.labels == c].mean(0) for c in range(classes) if (data.labels == c).any()]
    return [round(100 * value, 2) for value in torch.stack(recalls).mean(0).tolist()]


def _side_by_side(images: Tensor, runs: int) -> Tensor:
    """(N, R, C, H, W), or (N, 1, C, H, W) for all runs alike, -> (N, R * C, H, W)."""
    return images.expand(-1, runs, -1, -1, -1).flatten(1, 2)


def train(setting: Setting, seeds: list[int], root: Path | None, samples: int = SAMPLES) -> dict:
    regime = REGIMES[setting.regime]
    split = load(regime.data, root)
    runs, iterations = len(seeds), samples // setting.batch
    epoch_iters = iterations / EPOCHS
    model = SideBySide(
        split.train.images.shape[1], split.classes, NETS[regime.net], norm_cfg(setting, epoch_iters), seeds
    )
    order = torch.stack(
        [batches(split.train, regime.order, setting.batch, iterations, seed) for seed in seeds], dim=2
    )  # (iterations, batch, R)
    lr = regime.lr * setting.lr_factor * setting.batch / BASE_BATCH
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=regime.weight_decay)
    began, last_losses = time.process_time(), []
    for step, index in enumerate(order):
        epoch = step / epoch_iters
        decay = 0.1 ** ((epoch >= 8) + (epoch >= 11))
        for group in optimizer.param_groups:
            group['lr'] = (
                lr * decay * min(1.0, 1 / 3 + 2 / 3 * epoch / 0.5)
            )  # linear warm-up over half an epoch
        logits = model(_side_by_side(split.train.images[index], runs))
        losses = F.cross_entropy(logits.transpose(1, 2), split.train.labels[index], reduction='none').mean(
            0
        )  # (R,)
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
        if epoch >= 11:
            last_losses.append(losses.detach())
    seconds = time.process_time() - began
    record = dict(
        setting._asdict(),
        seeds=seeds,
        samples=samples,
        lr=lr,
        train_loss=torch.stack(last_losses).mean(0).tolist(),
    )
    record['accuracy'] = accuracy(model, split.test, split.classes)
    for variance in ('population', 'batch'):
        again = copy.deepcopy(model).train()
        precise_statistics(again, again, _calibration(split.train, regime, setting.batch, runs), variance)
        record[f'accuracy_{variance}'] = accuracy(again, split.test, split.classes)
    record['cpu_seconds'] = round(seconds, 1)
    return record


def _calibration(data: Images, regime: Regime, batch: int, runs: int) -> Iterator[Tensor]:
    """512 training images in batches as in training, the same for all runs."""
    for index in batches(data, regime.order, batch, 512 // batch, seed=12345):
        yield _side_by_side(data.images[index][:, None], runs)


def settings(section: str, regimes: list[str], sizes: list[int], norms: list[str] = NORMS) -> list[Setting]:
    if section == 'main':
        cells = [Setting(r, n, b) for r in regimes for b in sizes for n in norms]
    elif section == 'window':
        cells = [
            Setting(r, n, b, window=w) for r in regimes for b in (2,) for w in (1, 2, 4, 8, 16)
            for n in norms
        ]  # fmt: skip
    elif section == 'burnin':
        cells = [
            Setting(r, n, b, burnin=e) for r in regimes for b in (2,) for e in (0, 1, 3, 5, 8)
            for n in norms
        ]  # fmt: skip
    elif section == 'lr':
        cells = [
            Setting(r, n, b, lr_factor=f) for r in regimes for b in (2,) for f in (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
            for n in norms
        ]  # fmt: skip
    # A single value per channel has no variance.
    return [s for s in cells if not (REGIMES[s.regime].net in ('fc', 'one') and s.batch == 1 and s.norm != 'GN')]


def save(path: Path, results: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix('.tmp')
    lines = ',\n'.join(f'{json.dumps(key)}: {json.dumps(value)}' for key, value in sorted(results.items()))
    temporary.write_text('{\n' + lines + '\n}\n')
    os.replace(temporary, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, help='folder with bccd/ and coco_dev/')
    parser.add_argument('--out', type=Path, default=RESULTS / 'classify.json')
    parser.add_argument('--sections', nargs='+', default=['main'], choices=['main', 'window', 'burnin', 'lr'])
    parser.add_argument('--regimes', nargs='+', default=list(REGIMES), choices=REGIMES)
    parser.add_argument('--batches', nargs='+', type=int, default=list(BATCHES), help='of the main table')
    parser.add_argument('--norms', nargs='+', default=list(NORMS))
    parser.add_argument('--seeds', type=int, default=8)
    parser.add_argument('--samples', type=int, default=SAMPLES, help='images that each cell sees')
    args = parser.parse_args()
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    for section in args.sections:
        for setting in settings(section, args.regimes, args.batches, args.norms):
            done = results.get(setting.key())
            if done and len(done['seeds']) >= args.seeds and done['samples'] == args.samples:
                continue
            try:
                record = train(setting, list(range(args.seeds)), args.data, args.samples)
            except FileNotFoundError as error:
                print(f'{setting.key()}: left out, {error}')
                continue
            results[setting.key()] = record
            save(args.out, results)
            shown = [record[k] for k in ('accuracy', 'accuracy_population', 'accuracy_batch')]
            print(
                setting.key(),
                *(f'{sum(v) / len(v):.2f}' for v in shown),
                f'{record["cpu_seconds"]}s',
                flush=True,
            )


if __name__ == '__main__':
    main()
