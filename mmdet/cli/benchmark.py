"""Count a detector's parameters and multiply-adds, and time its stages."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmdet.cli.parser import Parser, text_table
from mmdet.config.errors import UserError, say
from mmdet.config.output import check_writable, write_atomically


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("What a detector costs, stage by stage: parameters, multiply-adds and activations of one image, "
                    'seconds of a batch, memory.', [
        'cbn/mask_rcnn_r50_fpn_1x --size 800 1216',
        'my_config.py work_dirs/my_config/epoch_12.pth --images photos --batch 2 --json costs.json',
        'my_config.py --amp --compile',
    ])  # fmt: skip
    parser.add_config_arguments('model.test_cfg.rcnn.max_per_img=50')
    parser.add_argument('checkpoint', nargs='?', help='weights (default: random ones, with score_thr=0, so that there '
                        'are detections)')
    parser.add_argument('--size', type=int, nargs=2, metavar=('H', 'W'),
                        help='of images of noise, as the model gets them (default: 800 1216)')
    parser.add_argument('--images', nargs='+', metavar='FILE', help='image files or folders, in the place of noise, '
                        "through the config's test pipeline")
    parser.add_argument('--batch', type=int, default=1, metavar='N', help='images at a time (default: 1)')
    parser.add_argument('--repeats', type=int, default=10, metavar='N',
                        help='batches that are timed; the medians are given (default: 10)')
    parser.add_argument('--device', help='cpu or cuda:0 (default: a GPU where there is one)')
    parser.add_argument('--amp', action='store_true',
                        help='mixed precision: float16 on GPU, bfloat16 on a CPU that has instructions for it')
    parser.add_argument('--compile', action='store_true', help='torch.compile; backbone and neck are one part then')
    parser.add_argument('--json', metavar='FILE', help='write the numbers into this file, too')
    args = parser.parse_args(argv)
    if args.size and args.images:
        raise UserError('--size is of images of noise; with --images the test pipeline of the config says it')
    for name, value in dict(batch=args.batch, repeats=args.repeats, size=min(args.size or [1])).items():
        if value < 1:
            raise UserError(f'--{name} {value}: at least 1 is needed')
    if args.json and not args.json.endswith('.json'):
        raise UserError(f'--json {args.json}: the file name must end with .json')
    return args


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Counts and times as --json writes them."""
    import torch

    from mmdet.apis.counts import Count, count
    from mmdet.apis.stage_times import peak_memory, time_stages
    from mmdet.engine.runner import drop_pretrained

    model = build(args)
    device, half = next(model.parameters()).device, model.half_precision
    batches = batches_of(args, model)
    size = tuple(model.data_preprocessor(batches[0](), False)['inputs'].shape[-2:])  # padded
    cfg = model.cfg.model.to_dict()
    drop_pretrained(cfg)
    counts = count(cfg, size)
    seconds = time_stages(model, batches, args.repeats, args.compile)
    if not args.images:
        seconds.pop('load', None)  # nothing is
    if args.compile:
        counts['backbone, neck'] = counts.pop('backbone') + counts.pop('neck', Count())
    total = sum(counts.values(), Count())
    stages = {name: dict(vars(counts.get(name, Count())), seconds=seconds.get(name))
              for name in sorted({*seconds, *counts} - {'total'}, key=_place)}
    return dict(
        config=args.config, checkpoint=args.checkpoint, device=_named(device), torch=torch.__version__, size=size,
        batch=args.batch, repeats=args.repeats, threads=torch.get_num_threads(),
        amp=half and str(half).removeprefix('torch.'), compile=args.compile, stages=stages, **vars(total),
        seconds=seconds['total'], images_per_second=args.batch / seconds['total'],
        memory_mib=peak_memory(device.type),
    )  # fmt: skip


def build(args: argparse.Namespace) -> Any:
    from mmdet.apis import init_detector
    from mmdet.checkpoints import existing_file, is_checkpoint
    from mmdet.config.load import load_config

    options = dict(device=args.device, amp=args.amp, compile=args.compile)
    if args.checkpoint is None and is_checkpoint(args.config):
        return init_detector(args.config, cfg_options=args.cfg_options, **options)
    if args.checkpoint and '://' not in args.checkpoint:
        existing_file(args.checkpoint)
    cfg = load_config(args.config, args.cfg_options)
    if args.checkpoint is None:
        _let_all_through(cfg.model.get('test_cfg') or {})
        say('random weights: score_thr=0, so that as many detections as test_cfg allows are made and drawn')
    return init_detector(cfg, args.checkpoint, **options)


def _let_all_through(settings: dict) -> None:
    for key, value in settings.items():
        if key == 'score_thr':
            settings[key] = 0.0
        elif isinstance(value, dict):
            _let_all_through(value)


def batches_of(args: argparse.Namespace, model: Any) -> list:
    """Functions that make a batch each: one of noise, or at most eight of the images."""
    from mmengine.dataset import pseudo_collate

    from mmdet.apis.images import to_input
    from mmdet.apis.inference import pipeline_of
    from mmdet.apis.stage_times import random_batch
    from mmdet.cli.predict import find_inputs

    if not args.images:
        noise = random_batch(tuple(args.size or (800, 1216)), args.batch)
        return [lambda: noise]
    pipeline = pipeline_of(model.cfg)
    paths, _ = find_inputs(args.images, Path('predictions'))
    if not paths:
        raise UserError(f'--images {" ".join(args.images)}: no image there')

    def load(start: int):
        part = [paths[(start + i) % len(paths)] for i in range(args.batch)]
        return lambda: pseudo_collate([pipeline(dict(to_input(path), img_id=i)) for i, path in enumerate(part)])

    return [load(start) for start in range(0, min(len(paths), 8 * args.batch), args.batch)]


def _place(name: str) -> int:
    from mmdet.apis.stage_times import STAGES

    return STAGES.index(name) if name in STAGES else len(STAGES)


def _named(device: Any) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == 'cuda' else 'CPU'


def table(found: dict[str, Any]) -> str:
    def row(name: str, part: dict[str, Any], total: float) -> list[str]:
        counted = part['multiply_adds'] or part['parameters']
        numbers = [f'{part["parameters"] / 1e6:.2f}', f'{part["multiply_adds"] / 1e9:.2f}',
                   f'{part["activations"] / 1e6:.1f}'] if counted else ['', '', '']
        seconds = part['seconds']
        timed = ['', ''] if seconds is None else [f'{1000 * seconds:.1f}', f'{seconds / total:.0%}']
        return [name, *numbers, *timed]

    heads = ['stage', 'parameters, M', 'multiply-adds, G', 'activations, M', 'ms', 'share']
    rows = [row(name, part, found['seconds']) for name, part in found['stages'].items()]
    drawn = text_table([heads, *rows, row('total', found, found['seconds'])], total=True)
    height, width = found['size']
    options = ''.join(f', {option}' for option in (found['amp'], found['compile'] and 'compiled') if option)
    return (f'{drawn}\n{found["batch"]} x {height} x {width} on {found["device"]} ({found["threads"]} threads'
            f'{options}), torch {found["torch"]}: medians of '
            f'{found["repeats"]} batches, {found["images_per_second"]:.2f} images/s, memory {found["memory_mib"]:.0f} '
            'MiB at most\nCounts are of one image; ms of a batch')


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.json:
        check_writable(str(Path(args.json).parent), '--json')
    found = measure(args)
    print(table(found))
    if args.json:
        write_atomically(args.json, json.dumps(found, indent=1).encode())
