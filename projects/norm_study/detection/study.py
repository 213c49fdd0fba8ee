"""The detection study: which norm in neck and heads of a detector that starts from ImageNet's weights?

    python -m projects.norm_study.detection.study --data DIR --weights FILE --workers 2
    python -m projects.norm_study.detection.study --data DIR --weights FILE --full            on a GPU

DIR holds facade/ and nuclei_dsb2018/ (for the parts that have their names from it, and `backbone`); FILE is
efficientnet-lite0-57934424.pth (docs/models.md). A cell is one norm, batch size and seed; its record is
results/PART-NORM-bBATCH-sSEED.json. Finished cells are not run again, so the command can be killed at any time.
DESIGN.md says what is compared; `python -m projects.norm_study.report` writes tables and figures.
"""

import argparse
import itertools
import json
import math
import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
CONFIG = HERE / 'mask_rcnn_efficientnet_lite0_fpn.py'
NUCLEI = HERE / 'mask_rcnn_efficientnet_lite0_fpn_nuclei.py'
NORMS = ('none', 'BN', 'GN', 'CBN', 'CBN-full')
BATCHES = (1, 2)
SEEDS = (0, 1, 2, 3, 4)
PARTS = ('lr', 'pilot', 'primary', 'long', 'why', 'nuclei', 'nuclei_why', 'backbone')
LR_SEED = 100  # of the runs that choose the learning rate
PILOT_SEEDS = (101,)  # of those that, with it, show how far runs lie apart
HELD_OUT = 4  # every fourth training image, for both
NUCLEI_PARTS = ('nuclei', 'nuclei_why', 'backbone')
# Of parts 'why'; on facade those of the grid first that were run on the same machine and code (DESIGN.md).
WHY_SEEDS = {'why': (3, 4, 0, 1, 2), 'nuclei_why': SEEDS}
# Parts 'why': the norm of the grid that each is compared with, and the one thing in which it differs.
VARIANTS = {
    'CBN-full-momentum0.01': ('CBN-full', dict(momentum=0.01)),
    'CBN-burnin0': ('CBN', dict(burnin=0)),
    'CBN-full-root': ('CBN-full', dict(compensation='root')),
    'CBN-full-window2': ('CBN-full', dict(buffer_num=1)),
    'CBN-full-window8': ('CBN-full', dict(buffer_num=7)),
}
# Part 'backbone': the norms of a backbone whose strides 16 and 32 are trained, below neck and heads with GN.
BACKBONES = {
    'GN+fixed': dict(norm_cfg=dict(type='BN', requires_grad=False), norm_eval=True),
    'GN+BN': dict(norm_cfg=dict(type='BN'), norm_eval=False),
    'GN+CBN-full': dict(norm_cfg=dict(type='CBN', buffer_num=3, full_gradient=True), norm_eval=False),
}


class Scale(NamedTuple):
    epochs: dict[str, int]  # of each part
    rates: tuple[float, ...]  # AdamW's, of two images a step; the rate goes with the root of the batch
    group: int  # channels of a group of GN
    options: dict  # of the config


SCALES = {
    False: Scale(
        dict(lr=2, pilot=2, primary=3, long=9, why=3, nuclei=6, nuclei_why=6, backbone=6), (0.0015, 0.003, 0.006), 8, {}
    ),
    True: Scale(
        dict(lr=8, pilot=8, primary=12, long=36, why=12, nuclei=24, nuclei_why=24, backbone=24),
        (0.00025, 0.0005, 0.001), 8,
        {
            'model.backbone.frozen_stages': 3,
            'model.neck.out_channels': 256,
            'model.rpn_head.in_channels': 256, 'model.rpn_head.feat_channels': 256,
            'model.roi_head.bbox_roi_extractor.out_channels': 256,
            'model.roi_head.mask_roi_extractor.out_channels': 256,
            'model.roi_head.bbox_head.in_channels': 256, 'model.roi_head.bbox_head.conv_out_channels': 256,
            'model.roi_head.bbox_head.fc_out_channels': 1024, 'model.roi_head.mask_head.num_convs': 4,
            'model.roi_head.mask_head.upsample_cfg.type': 'deconv', 'model.train_cfg.rcnn.mask_size': 28,
            'model.roi_head.mask_head.in_channels': 256, 'model.roi_head.mask_head.conv_out_channels': 256,
            'model.train_cfg.rcnn.sampler.num': 512,
            'model.train_cfg.rpn_proposal.nms_pre': 2000, 'model.train_cfg.rpn_proposal.max_per_img': 1000,
            'model.test_cfg.rpn.nms_pre': 1000, 'model.test_cfg.rpn.max_per_img': 1000,
        },
    ),
}  # fmt: skip


class Cell(NamedTuple):
    part: str
    norm: str
    batch: int
    seed: int
    rate: float | None = None  # None: the best of part 'lr'

    def file(self, out: Path) -> Path:
        rate = '' if self.rate is None else f'-lr{self.rate:g}'
        return out / f'{self.part}-{self.norm}-b{self.batch}-s{self.seed}{rate}.json'


def _grid_norm(name: str) -> tuple[str, dict]:
    """The norm of the grid that neck and heads have, and the setting in which they differ."""
    return VARIANTS.get(name, (name.partition('+')[0], {}))


def config_of(part: str, data: Path, weights: Path, options: dict):
    """The detector's config, on the data set of the part."""
    from mmdet.config.load import load_config

    config, folder = (NUCLEI, 'nuclei_dsb2018') if part in NUCLEI_PARTS else (CONFIG, 'facade')
    own = {'data_root': f'{data / folder}/', 'model.backbone.init_cfg.checkpoint': str(weights)}
    if part == 'backbone':
        own['model.backbone.frozen_stages'] = 3
    return load_config(config, own | options)


def norm_cfg(name: str, channels: int, group: int) -> dict | None:
    name, changed = _grid_norm(name)
    cbn = dict(type='CBN', buffer_num=3)
    cfg = {
        'none': None,
        'BN': dict(type='BN'),
        'GN': dict(type='GN', num_groups=channels // group),
        'CBN': dict(cbn, burnin=1),
        'CBN-full': dict(cbn, full_gradient=True),
    }[name]
    return cfg if cfg is None else cfg | changed


def cells(scale: Scale) -> Iterator[Cell]:
    """In the order in which they are run: what is missing when time runs out is whole seeds."""
    for norm, rate in itertools.product(NORMS, scale.rates):
        yield Cell('lr', norm, 2, LR_SEED, rate)
    for seed, norm in itertools.product(PILOT_SEEDS, NORMS):
        yield Cell('pilot', norm, 2, seed, scale.rates[1])
    for part, seed, norm, batch in itertools.product(('primary', 'long', 'nuclei'), SEEDS, NORMS, BATCHES):
        yield Cell(part, norm, batch, seed)
    for part, seeds in WHY_SEEDS.items():
        for seed, norm, batch in itertools.product(seeds, ('BN', *VARIANTS, 'CBN'), BATCHES):
            yield Cell(part, norm, batch, seed, scale.rates[1] if norm == 'CBN' else None)
    for seed, norm, batch in itertools.product(SEEDS, BACKBONES, BATCHES):
        yield Cell('backbone', norm, batch, seed)


def best_rate(norm: str, scale: Scale, out: Path) -> float:
    """The rate of the highest mean of box and mask AP on the held-out images."""
    found, (norm, _) = {}, _grid_norm(norm)
    for rate in scale.rates:
        metrics = json.loads(Cell('lr', norm, 2, LR_SEED, rate).file(out).read_text())['metrics']
        found[rate] = metrics['bbox_mAP'] + metrics['segm_mAP']
    return max(found, key=found.get)


def run(todo: list[Cell], args: argparse.Namespace) -> None:
    """Run the cells, of one part, in `args.workers` processes."""
    todo = [cell for cell in todo if not cell.file(args.out).exists()]
    context = multiprocessing.get_context('spawn')
    following = context.Value('i', 0)
    workers = [
        context.Process(target=work, args=(todo, following, args, os.getpid()))
        for _ in range(min(args.workers, len(todo)))
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    missing = [cell for cell in todo if not cell.file(args.out).exists()]
    if missing:
        raise SystemExit(f'{len(missing)} cells failed, first {missing[0]}; see above')


def work(todo: list[Cell], following, args: argparse.Namespace, parent: int) -> None:
    """Run one cell after the other, until none is left or the parent process is gone."""
    import torch
    from mmengine.logging import MMLogger

    from mmdet.config.output import write_atomically
    from projects.norm_study.detection import train

    MMLogger.get_instance('norm_study', log_level='ERROR')
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    if device == 'cpu':
        torch.set_num_threads(1)
    scale = SCALES[args.full]
    cfg = config_of(todo[0].part, args.data, args.weights, scale.options)
    sets = data_of(cfg, args.cache, device)
    while os.getppid() == parent:
        with following.get_lock():
            index = following.value
            following.value += 1
        if index >= len(todo):
            break
        cell = todo[index]
        began = time.time(), time.process_time()
        for option, value in BACKBONES.get(cell.norm, {}).items():
            cfg.model.backbone[option] = value  # update() would merge the old norm into the new
        norm = norm_cfg(cell.norm, cfg.model.neck.out_channels, scale.group)
        detector = train.Detector(cfg, norm, cell.seed, device)
        images, tested, ann_file = sets['held out' if cell.part in ('lr', 'pilot') else 'test']
        epochs = scale.epochs[cell.part]
        cfg.train_cfg.max_epochs = cfg.param_scheduler[1].end = cfg.param_scheduler[1].T_max = epochs
        rate = best_rate(cell.norm, scale, args.out) if cell.rate is None else cell.rate
        cfg.optim_wrapper.optimizer.lr = rate * math.sqrt(cell.batch / 2)
        record = dict(cell._asdict(), rate=rate, epochs=epochs, images=len(images), device=device)
        record |= train.train(detector, images, cfg, cell.batch, cell.seed)
        record['metrics'] = train.test(detector, tested, ann_file)
        if cell.part in WHY_SEEDS:
            train.measure_statistics(detector, images, cell.batch, cell.seed)
            record['precise'] = train.test(detector, tested, ann_file)
        record |= dict(wall_seconds=round(time.time() - began[0]), cpu_seconds=round(time.process_time() - began[1]))
        write_atomically(cell.file(args.out), (json.dumps(record) + '\n').encode())
        if args.keep:
            args.keep.mkdir(parents=True, exist_ok=True)
            weights = {k: v for k, v in detector.model.state_dict().items() if not k.startswith('backbone')}
            torch.save(weights, cell.file(args.keep).with_suffix('.pth'))
        print(cell.file(args.out).stem, record['metrics'], f'{record["cpu_seconds"]} s', flush=True)


def data_of(cfg, cache: Path, device: str = 'cpu') -> dict[str, tuple]:
    """Training images, test images and the annotation file of these, for runs that are reported and for the others."""
    from projects.norm_study.detection.train import Data, Detector

    detector = Detector(cfg, None, 0, device)
    loaders = cfg.train_dataloader, cfg.val_dataloader
    training, test = (Data(loader.dataset, detector, cache) for loader in loaders)
    train_file, test_file = (loader.dataset.data_root + loader.dataset.ann_file for loader in loaders)
    chosen = [[i for i in range(len(training)) if (i % HELD_OUT == 0) == held_out] for held_out in (False, True)]
    return {
        'test': (training, test, test_file),
        'held out': (*(training.subset(indices) for indices in chosen), train_file),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, required=True, help='folder with facade/')
    parser.add_argument('--weights', type=Path, required=True, help="EfficientNet-Lite0's weights")
    parser.add_argument('--out', type=Path, help='folder of the records; default results/ or results_full/')
    parser.add_argument(
        '--cache', type=Path, default=Path('work_dirs/norm_study'), help='folder for maps of the frozen stages'
    )
    parser.add_argument('--keep', type=Path, help='folder for the trained weights of neck and heads')
    parser.add_argument('--workers', type=int, default=1, help='cells that run at once, each on one thread')
    parser.add_argument('--full', action='store_true', help='the large form, for a GPU')
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=PARTS[:3])
    parser.add_argument('--seeds', nargs='+', type=int, help='these alone')
    parser.add_argument('--norms', nargs='+', help='these alone')
    args = parser.parse_args()
    args.out = args.out or HERE / ('results_full' if args.full else 'results')
    for part in args.parts:
        run([cell for cell in cells(SCALES[args.full]) if cell.part == part
             and cell.seed in (args.seeds or [cell.seed]) and cell.norm in (args.norms or [cell.norm])], args)


if __name__ == '__main__':
    main()
