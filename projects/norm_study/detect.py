"""The norm study on detection: Faster R-CNN on blood cells, Mask R-CNN on nuclei, from random weights.

    python projects/norm_study/detect.py --data DIR                      the small scale of study.md
    python projects/norm_study/detect.py --data DIR --epochs 12          three times as long
    python projects/norm_study/detect.py --data DIR --pretrained DIR     from a backbone that knows the other data
    python projects/norm_study/detect.py --data DIR --full --out FILE    ResNet-50, larger images, a GPU

DIR holds bccd/ and nuclei_dsb2018/. A cell is one data set, norm, batch size per process and seed; finished cells
are not run again. Only the neck and the heads have the norm in question, as in the paper; the backbone has GN. The
learning rate is in proportion to the images per step, the number of images seen is the same for all. A pretrained
backbone comes from twelve epochs on the other data set, with GN; its stem and first stage stay as they are.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))

BURNIN = {False: 1, True: 8}  # epochs
PRETRAINING_EPOCHS = 12


class Scale(NamedTuple):
    depth: int
    width: int  # channels of the backbone's first stage; the neck and the heads have twice as many
    size: tuple[int, int]  # px
    epochs: int
    rois: int
    lr: float  # for one image a step


SCALES = {
    False: Scale(18, 16, (160, 160), 4, 64, 0.01),
    True: Scale(50, 64, (640, 640), 24, 512, 0.00125),
}
SETS = {
    'bccd': dict(model='faster', metric='bbox', classes=('RBC', 'WBC', 'Platelets'), anchor=8),
    'nuclei_dsb2018': dict(model='mask', metric=['bbox', 'segm'], classes=('nucleus',), anchor=2),  # nuclei are small
}


def norm_cfg(name: str, full: bool) -> dict | None:
    cbn = dict(type='CBN', buffer_num=3, burnin=BURNIN[full])
    return {
        'none': None,
        'BN': dict(type='BN'),
        'SyncBN': dict(type='SyncBN'),
        'GN': dict(type='GN', num_groups=32 if full else 8),
        'naive': dict(cbn, rho=0.0),
        'CBN': cbn,
        'CBN-full': dict(cbn, full_gradient=True),
    }[name]


def build_config(cell: dict, root: Path, work_dir: str, processes: int, device_full: bool):
    from mmdet.config.load import load_config

    scale, chosen, norm = SCALES[device_full], SETS[cell['set']], norm_cfg(cell['norm'], device_full)
    masks = chosen['model'] == 'mask'
    backbone = dict(type='Pretrained', checkpoint=cell['backbone']) if 'backbone' in cell else None
    cfg = load_config(ROOT / 'configs' / 'cbn' / f'{chosen["model"]}_rcnn_r50_fpn_1x.py')
    width, neck = scale.width, 4 * scale.width if device_full else 2 * scale.width
    bottleneck = 4 if scale.depth >= 50 else 1
    head = dict(num_classes=len(chosen['classes']), norm_cfg=norm, in_channels=neck, conv_out_channels=neck)
    roi_head = dict(
        bbox_roi_extractor=dict(out_channels=neck), bbox_head=dict(head, fc_out_channels=4 * neck)
    )
    if masks:
        roi_head.update(mask_roi_extractor=dict(out_channels=neck), mask_head=head)
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=masks),
        dict(type='Resize', scale=scale.size, keep_ratio=True),
        dict(type='RandomFlip', prob=0.5),
        dict(type='PackDetInputs'),
    ]
    common = dict(
        data_root=f'{root / cell["set"]}/', metainfo=dict(classes=chosen['classes']), backend_args=None
    )
    workers = dict(num_workers=4 if device_full else 0, persistent_workers=device_full)
    evaluator = dict(
        ann_file=str(root / cell['set'] / 'val' / 'instances.json'), metric=chosen['metric'], classwise=False
    )
    epochs = scale.epochs
    cfg.merge_from_dict(
        dict(
            model=dict(
                backbone=dict(
                    depth=scale.depth, base_channels=width, norm_eval=False, zero_init_residual=False,
                    frozen_stages=1 if backbone else -1, init_cfg=backbone,
                    norm_cfg=dict(type='GN', num_groups=32 if device_full else 8),
                ),
                neck=dict(
                    in_channels=[bottleneck * width * 2**i for i in range(4)], out_channels=neck, norm_cfg=norm
                ),
                rpn_head=dict(
                    in_channels=neck, feat_channels=neck, anchor_generator=dict(scales=[chosen['anchor']])
                ),
                roi_head=roi_head,
                train_cfg=dict(
                    rpn_proposal=dict(nms_pre=500, max_per_img=300), rcnn=dict(sampler=dict(num=scale.rois))
                ),
                test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=200)),
            ),
            train_dataloader=dict(
                batch_size=cell['batch'],
                dataset=dict(
                    common, ann_file='train/instances.json', data_prefix=dict(img='train/images/'), pipeline=pipeline
                ),
                **workers,
            ),
            val_dataloader=dict(
                dataset=dict(
                    common, ann_file='val/instances.json', data_prefix=dict(img='val/images/'),
                    pipeline=[*pipeline[:1], pipeline[2], pipeline[4]],
                ),
                **workers,
            ),
            val_evaluator=evaluator,
            train_cfg=dict(max_epochs=epochs, val_interval=epochs),
            optim_wrapper=dict(optimizer=dict(lr=scale.lr * cell['batch'] * processes)),
            param_scheduler=[
                dict(type='LinearLR', start_factor=1 / 3, by_epoch=False, begin=0, end=100 // processes),
                dict(type='MultiStepLR', by_epoch=True, begin=0, end=epochs, gamma=0.1,
                     milestones=[round(epochs * 8 / 12), round(epochs * 11 / 12)]),
            ],
            default_hooks=dict(checkpoint=dict(save_best=None, interval=epochs), logger=dict(interval=200)),
            work_dir=work_dir,
            log_level='WARNING',
        )
    )  # fmt: skip
    cfg.test_dataloader, cfg.test_evaluator = None, None
    cfg.test_cfg = None
    return cfg


def run_cell(cell: dict, root: Path, processes: int, full: bool, out: Path) -> None:
    """Train and evaluate in this process, or as one of several that were started for it; write the record."""
    from mmengine.dist import get_rank

    from mmdet.engine.launch import is_spawned, join_processes, leave_processes
    from mmdet.engine.runner import build_runner
    from mmdet.engine.seeding import set_seed

    if processes == 1:
        import torch

        if not torch.cuda.is_available():
            torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', os.cpu_count() or 1)))
    launcher = 'pytorch' if is_spawned() else 'none'
    join_processes(launcher)
    began = time.time(), time.process_time()
    with tempfile.TemporaryDirectory() as work_dir:
        cfg = build_config(cell, root, work_dir, processes, full)
        set_seed(cfg, cell['seed'], False, None)
        runner = build_runner(cfg, launcher)
        runner.train()
        metrics = runner.message_hub.log_scalars
        record = dict(
            cell, processes=processes, epochs=cfg.train_cfg.max_epochs,
            images=cfg.train_cfg.max_epochs * len(runner.train_dataloader.dataset),
            lr=cfg.optim_wrapper.optimizer.lr,
            metrics={k.removeprefix('val/coco/'): round(float(v.current()), 4) for k, v in metrics.items()
                     if k.startswith('val/coco/')},
            wall_seconds=round(time.time() - began[0]), cpu_seconds=round(time.process_time() - began[1]),
        )  # fmt: skip
        if get_rank() == 0:
            if 'backbone' in cell:
                record['backbone'] = Path(cell['backbone']).stem
            out.write_text(json.dumps(record))
            shutil.copy(Path(work_dir) / f'epoch_{cfg.train_cfg.max_epochs}.pth', out.with_suffix('.pth'))
    leave_processes()


def run_alone(cell: dict, args: argparse.Namespace, epochs: int, weights: Path | None = None) -> dict:
    """The record of a cell, run in a process of its own: nothing of one run is left in the next, and some need two.

    Its checkpoint goes to ``weights``.
    """
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / 'record.json'
        options = dict(data=args.data, out=record, cell=json.dumps(cell), epochs=epochs)
        command = [sys.executable, __file__, *(f'--{name}={value}' for name, value in options.items())]
        subprocess.run(command + ['--full'] * args.full, check=True)
        if weights is not None:
            weights.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(record.with_suffix('.pth'), weights)
        return json.loads(record.read_text())


def other_sets_backbone(name: str, args: argparse.Namespace) -> str:
    """A checkpoint trained on the data set that is not ``name``, made where it is missing."""
    (other,) = SETS.keys() - {name}
    weights = args.pretrained / f'{other}.pth'
    if not weights.exists():
        run_alone(dict(set=other, norm='GN', batch=2, seed=0), args, PRETRAINING_EPOCHS, weights)
    return str(weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--out', type=Path, default=HERE / 'results' / 'detect.json')
    parser.add_argument('--full', action='store_true', help='the large scale, for a GPU')
    parser.add_argument('--sets', nargs='+', default=list(SETS), choices=SETS)
    parser.add_argument('--norms', nargs='+', default=['none', 'BN', 'GN', 'naive', 'CBN', 'CBN-full', 'SyncBN'])
    parser.add_argument('--batches', nargs='+', type=int, default=[1, 2])
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--epochs', type=int, help="instead of the scale's")
    parser.add_argument('--pretrained', type=Path, help='start from backbones of the other set, kept in this folder')
    parser.add_argument('--cell', type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.epochs:
        SCALES[args.full] = SCALES[args.full]._replace(epochs=args.epochs)
    if args.cell:
        processes = 2 if args.cell['norm'] == 'SyncBN' else 1
        from mmdet.engine.launch import spawn

        spawn(processes)
        run_cell(args.cell, args.data, processes, args.full, args.out)
        return
    from projects.norm_study.classify import save

    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    cells = [
        dict(set=s, norm=n, batch=b, seed=seed)
        for s in args.sets for seed in args.seeds for b in args.batches for n in args.norms
    ]  # fmt: skip
    for cell in cells:
        key = '|'.join([*map(str, cell.values()), *(['full'] if args.full else []),
                        *([f'{args.epochs} epochs'] if args.epochs else []),
                        *(['pretrained'] if args.pretrained else [])])  # fmt: skip
        if key in results:
            continue
        if not (args.data / cell['set']).is_dir():
            print(f'{key}: left out, there is no {args.data / cell["set"]}')
            continue
        if args.pretrained:
            cell['backbone'] = other_sets_backbone(cell['set'], args)
        results[key] = run_alone(cell, args, SCALES[args.full].epochs)
        save(args.out, results)
        print(key, results[key]['metrics'], f'{results[key]["cpu_seconds"]}s', flush=True)


if __name__ == '__main__':
    main()
