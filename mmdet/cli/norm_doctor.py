"""Train a few iterations, and say which norm neck and heads should have at this batch size."""

import argparse
import copy
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mmdet.cli.parser import Parser, text_table
from mmdet.config.errors import UserError


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        'Train a config for a few iterations with CBN in neck and heads, whatever norm it has. Then compare, layer by '
        'layer, the batch statistics and gradients of BatchNorm, naive pooling and CBN with those of a large batch, '
        'and say which norm to take. Writes norm_doctor.json and norm_doctor.png, no checkpoint.',
        ['my_config.py', 'my_config.py --cfg-options train_dataloader.batch_size=1 --out doctor'],
    )
    parser.add_config_arguments('train_dataloader.batch_size=1')
    parser.add_argument('--iters', type=int, default=100, metavar='N',
                        help='iterations of training before it is measured (default: %(default)s)')
    parser.add_argument('--truth-batches', type=int, default=32, metavar='N',
                        help='batches that stand for the large batch (default: %(default)s)')
    parser.add_argument('--out', metavar='DIR', help='default: work_dirs/CONFIG_NAME')
    parser.add_argument('--seed', type=int, default=0, help='of weights, data and sampling (default: %(default)s)')
    return parser.parse_args(argv)


def read(args: argparse.Namespace) -> Any:
    """The config, checked as for training."""
    from mmdet.config.check import check_files, check_values
    from mmdet.config.load import check_types, load_config

    if args.iters < 1 or args.truth_batches < 1:
        raise UserError(f'--iters {args.iters} --truth-batches {args.truth_batches}: each must be at least 1')
    cfg = load_config(args.config, args.cfg_options)
    if not cfg.get('train_dataloader'):
        raise UserError(f'{args.config} has no train_dataloader: norms are measured on training images')
    check_types(cfg)
    check_values(cfg, training=True)
    check_files(cfg, training=True)
    return cfg


def build_model(cfg: Any, norm_cfg: dict) -> tuple:
    """The model with `norm_cfg` in neck and heads, its weights as a training begins with, and the norms' blocks."""
    import torch

    from mmdet.checkpoints import load_checkpoint
    from mmdet.engine.freezing import freeze
    from mmdet.engine.norm_doctor import check_places, normed_blocks, put_norm
    from mmdet.registry import MODELS

    described = cfg.model.to_dict()
    places = put_norm(described, norm_cfg)
    model = MODELS.build(described)
    model.init_weights()
    if cfg.get('load_from'):
        load_checkpoint(model, cfg.load_from, strict=False)
    if cfg.get('frozen_parts'):
        freeze(model, cfg.frozen_parts)
    blocks = normed_blocks(model)
    check_places(places, blocks)
    return model.to('cuda' if torch.cuda.is_available() else 'cpu').train(), blocks


def batches_of(cfg: Any, seed: int, model: Any) -> Iterator[Any]:
    """Training batches, epoch after epoch."""
    from mmengine.runner import Runner

    from mmdet.engine.data_checks import check_classes, check_length
    from mmdet.engine.seeding import seeded_dataloader

    loader_cfg = cfg.train_dataloader.to_dict() | dict(num_workers=0, persistent_workers=False)
    loader_cfg.pop('prefetch_factor', None)  # of workers; one process is enough for a few iterations
    loader = Runner.build_dataloader(seeded_dataloader(loader_cfg, seed), seed)
    check_length(loader, 'train')
    check_classes(model, loader.dataset)
    for epoch in itertools.count():
        sampler = loader.batch_sampler.sampler
        if hasattr(sampler, 'set_epoch'):
            sampler.set_epoch(epoch)
        yield from loader


def stepper(model: Any, cfg: Any, iterations: int) -> Callable[[Any, int], float]:
    """One iteration of the config's optimizer, its learning rate rising over the first quarter of them."""
    from mmengine.optim import build_optim_wrapper

    from mmdet.engine.amp import buildable

    wrapper = build_optim_wrapper(model, buildable(cfg.optim_wrapper.to_dict()))
    groups = wrapper.optimizer.param_groups
    full = [group['lr'] for group in groups]

    def step(batch: Any, iteration: int) -> float:
        for group, lr in zip(groups, full):
            group['lr'] = lr * min(1.0, (iteration + 1) / max(iterations / 4, 1))
        return model.train_step(batch, wrapper)['loss'].item()

    return step


def table(report: dict) -> str:
    """Each layer's error of the variance, and its cosine."""
    from mmdet.engine.norm_doctor import NORMS, POOLED

    head = ['layer', 'M', *(f'{norm}: var, cos' for norm in ('BN', 'naive', 'CBN', 'CBN full gradient')), POOLED]
    norms = [norm for norm in NORMS if not norm.endswith('1/16')]
    rows = [[name, f'{layer["M"]:,.0f}', *(_pair(layer['errors'][n]['var'], layer['cosines'].get(n)) for n in norms),
             _number(layer['cosines'].get(POOLED))] for name, layer in report['layers'].items()]
    summary = report['summary']
    rows.append(['median', '', *(_pair(summary[n].get('var'), summary[n]['cosine']) for n in norms),
                 _number(summary[POOLED]['cosine'])])
    return text_table([head, *rows], total=True)


def cost_table(report: dict) -> str:
    rows = [[norm, f'{c["seconds"]:.3f}', f'{c["saved_bytes"] / 2**20:.1f}', f'{c["stored_bytes"] / 2**20:.1f}']
            for norm, c in report['costs'].items()]
    return text_table([['norm', 'seconds', 'kept for backward, MiB', 'stored, MiB'], *rows])


def _pair(error: float | None, cosine: float | None) -> str:
    return f'{"-" if error is None else f"{error:.1%}"}, {_number(cosine)}'


def _number(value: float | None) -> str:
    return '-' if value is None else f'{value:.3f}'


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    cfg = read(args)

    import torch
    from mmengine.registry import init_default_scope

    from mmdet.config.output import check_writable, write_atomically
    from mmdet.engine.log import ignore_known_warnings
    from mmdet.engine.norm_doctor import PROBES, Candidates, advice, cbn_of, examine, train
    from mmdet.engine.seeding import derived_seed, seed_generators
    from mmdet.visualization.norms import draw_norms

    folder = Path(args.out or cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}')
    check_writable(str(folder), '--out')
    ignore_known_warnings()
    init_default_scope('mmdet')
    seed_generators(args.seed)
    norm_cfg = cbn_of(cfg.model.to_dict())
    model, blocks = build_model(cfg, norm_cfg)
    candidates = Candidates(blocks)
    batches = batches_of(cfg, args.seed, model)
    print(f'{len(blocks)} norms in neck and heads; {args.iters} iterations of training ...', flush=True)
    train(stepper(model, cfg, args.iters), batches, args.iters, candidates)

    def loss(batch: Any, number: int) -> torch.Tensor:
        # preprocessing may change samples in place; RoIs are sampled alike for every norm
        seed_generators(derived_seed(args.seed, number))
        data = model.data_preprocessor(copy.deepcopy(batch), True)
        return model.parse_losses(model(**data, mode='loss'))[0]

    print(f'the norms on {PROBES} batches, against {args.truth_batches} others ...', flush=True)
    truth = list(itertools.islice(batches, args.truth_batches))
    found = examine(candidates, loss, truth, list(itertools.islice(batches, PROBES)))
    device = str(next(model.parameters()).device)
    report = dict(
        config=args.config, cfg_options=args.cfg_options, device=device, seed=args.seed, iterations=args.iters,
        batch_size=cfg.train_dataloader.batch_size, truth_batches=args.truth_batches, probes=PROBES,
        trained_with=norm_cfg, **found,
    )  # fmt: skip
    report['advice'] = advice(report)
    write_atomically(folder / 'norm_doctor.json', json.dumps(report, indent=1).encode())
    draw_norms(report, folder / 'norm_doctor.png')
    print(table(report), cost_table(report), *report['advice'], sep='\n')
    print(f'\n{folder / "norm_doctor.json"}, {folder / "norm_doctor.png"}')
