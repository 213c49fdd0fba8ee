"""Evaluate a checkpoint."""

import argparse
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmdet.cli.legacy import modern_arguments
from mmdet.cli.parser import Parser, start_processes
from mmdet.config.errors import UserError, suggest
from mmdet.engine.launch import join_processes, leave_processes, on_rank_0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser('Evaluate a detector.', [
        'my_config.py work_dirs/my_config/epoch_12.pth --eval bbox segm',
        'my_config.py checkpoint.pth --gpus 2 --out results.pkl --show-dir found',
    ])
    parser.add_config_arguments('test_dataloader.batch_size=4')
    parser.add_process_arguments()
    parser.add_argument('checkpoint', nargs='?',
                        help='weights to evaluate (a checkpoint that holds its config may stand alone)')
    parser.add_argument('--work-dir', help='folder of the log (default: work_dirs/CONFIG_NAME/test)')
    parser.add_inference_arguments()
    parser.add_argument('--out', metavar='FILE.pkl', help='save the detections, one dict an image')
    parser.add_argument('--eval', nargs='+', metavar='METRIC',
                        help='metrics to compute, such as bbox, segm, proposal (default: those of the config)')
    parser.add_argument('--show-dir', help='draw the detections into this folder')
    parser.add_argument('--show-score-thr', type=float, default=0.3, help='minimum score to draw (default: 0.3)')
    parser.add_argument('--format-only', action='store_true',
                        help='write the results in the format of the metric without evaluating (no annotations needed)')
    return parser.parse_args(modern_arguments(argv))


def choose_metrics(cfg, names: list[str] | None, format_only: bool) -> None:
    """Keep of the config's metrics those that are asked for, and tell them what to do.

    A metric's class says by `offers` which values of its option `metric` can be asked for. One that writes files
    without evaluating takes `format_only` and `outfile_prefix`.

    Raises:
        UserError: a name that none of them offers, or none that writes files.
    """
    from mmdet.config.values import class_of

    whole = cfg.test_evaluator
    several = isinstance(whole, dict) and 'metrics' in whole  # an evaluator that knows which metric is for what
    evaluators = whole.metrics if several else whole if isinstance(whole, (list, tuple)) else [whole]
    offers = [getattr(class_of(evaluator), 'offers', ()) for evaluator in evaluators]
    kinds = ', '.join(str(evaluator.get('type')) for evaluator in evaluators)
    known = [name for offered in offers for name in offered]
    for name in names or ():
        if name not in known:
            offer = f'offers {", ".join(known)}' if known else 'offers nothing by name; leave --eval out'
            raise UserError(f'--eval {name}: test_evaluator of the config ({kinds}) {offer}.{suggest(name, known)}')
    chosen = []
    for evaluator, offered in zip(evaluators, offers):
        mine = [name for name in names or () if name in offered]
        if mine:
            evaluator.metric = mine
        elif names and offered:
            continue
        if format_only:
            if 'format_only' not in inspect.signature(class_of(evaluator)).parameters:
                continue
            evaluator.format_only = True
            if not evaluator.get('outfile_prefix'):
                number = f'_{len(chosen)}' if chosen else ''
                evaluator.outfile_prefix = str(Path(cfg.work_dir) / f'results{number}')
        chosen.append(evaluator)
    if not chosen:
        raise UserError(f'--format-only: test_evaluator of the config ({kinds}) writes no files of results')
    if several and len(chosen) < len(evaluators):
        asked = f'--eval {" ".join(names)}' if names else '--format-only'
        raise UserError(f'{asked}: {whole.get("type")} of the config needs all its metrics ({kinds}), and not each of '
                        'them offers that')
    cfg.test_evaluator = dict(whole, metrics=chosen) if several else chosen if len(chosen) > 1 else chosen[0]


def check(args: argparse.Namespace) -> None:
    """What one process can check for all before they start; weights are not read."""
    from mmdet.checkpoints import existing_file, is_checkpoint

    if args.checkpoint is None and not is_checkpoint(args.config):
        raise UserError(f'{args.config}: a CHECKPOINT is needed after the config')
    weights = args.checkpoint or args.config
    if '://' not in weights:
        existing_file(weights)
    if args.checkpoint is not None:
        read(args, None)


def read(args: argparse.Namespace, checkpoint: Any) -> Any:
    """The config, of the command line or of a checkpoint, with what the options ask for, checked."""
    from mmdet.checkpoints import config_of
    from mmdet.config.check import check_files, check_values
    from mmdet.config.load import check_types, load_config
    from mmdet.engine.tta import use_tta

    cfg = load_config(args.config, args.cfg_options) if checkpoint is None else config_of(checkpoint, args.cfg_options)
    if args.tta:
        use_tta(cfg)
    check_types(cfg)
    cfg.work_dir = args.work_dir or f'work_dirs/{Path(args.config).stem}/test'
    if cfg.get('test_evaluator') is None or cfg.get('test_dataloader') is None:
        raise UserError(f'{args.config} has no test_dataloader and test_evaluator: nothing to test on')
    if args.eval or args.format_only:
        choose_metrics(cfg, args.eval, args.format_only)
    if args.show_dir:
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(
            type='DetVisualizationHook', out_dir=args.show_dir, score_thr=args.show_score_thr)]
    check_values(cfg, training=False)
    check_files(cfg, training=False)
    return cfg


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        raise UserError(f'--out {args.out}: the file name must end with .pkl')
    if args.out and Path(args.out).is_dir():
        raise UserError(f'--out {args.out} is a folder; a file name is needed')
    launcher = start_processes(args, lambda: check(args))

    from mmdet.checkpoints import adapt_config, load_pretrained
    from mmdet.config.output import check_writable
    from mmdet.engine.amp import use_amp_in_tests
    from mmdet.engine.compiled import compile_for_inference
    from mmdet.engine.runner import build_runner, model_of
    from mmdet.evaluation import DumpDetResults

    alone = args.checkpoint is None
    if alone:
        check(args)
        join_processes(launcher, None)  # one of them downloads for all
        checkpoint = load_pretrained(args.config)
    cfg = read(args, checkpoint if alone else None)
    if not alone:
        join_processes(launcher, cfg.get('env_cfg'))
    if args.amp:
        use_amp_in_tests(cfg)
    folders = {'--work-dir': cfg.work_dir, '--show-dir': args.show_dir, '--out': args.out and Path(args.out).parent}
    on_rank_0(lambda: [check_writable(folder, option) for option, folder in folders.items() if folder])
    if not alone:
        checkpoint = load_pretrained(args.checkpoint)  # before the data set is read
    adapt_config(cfg, checkpoint)
    runner = build_runner(cfg, launcher, checkpoint=checkpoint)
    if args.compile:
        compile_for_inference(model_of(runner))  # at the first batch, when the weights are loaded
    if args.out:
        runner.test_evaluator.metrics.insert(0, DumpDetResults(args.out))  # kept, should the evaluation fail
    runner.test()
    leave_processes()
