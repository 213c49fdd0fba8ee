"""Evaluate a checkpoint: python tools/test.py CONFIG CHECKPOINT [--gpus N] [--eval bbox segm] ..."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mmdet.cli.parser import Parser, start_processes
from mmdet.config.errors import UserError, run_main
from mmdet.engine.launch import join_processes, leave_processes


def parse_args() -> argparse.Namespace:
    parser = Parser('Evaluate a detector.')
    parser.add_config_arguments('test_dataloader.batch_size=4')
    parser.add_process_arguments()
    parser.add_argument('checkpoint', help='weights to evaluate')
    parser.add_argument('--work-dir', help='folder of the log (default: work_dirs/CONFIG_NAME/test)')
    parser.add_argument('--out', metavar='FILE.pkl', help='save the detections, one dict an image')
    parser.add_argument('--eval', nargs='+', choices=('bbox', 'segm', 'proposal'), metavar='METRIC',
                        help="bbox, segm, proposal (default: the config's)")
    parser.add_argument('--show-dir', help='draw the detections into this folder')
    parser.add_argument('--show-score-thr', type=float, default=0.3, help='least score of a drawn detection')
    parser.add_argument('--format-only', action='store_true',
                        help='write the results as COCO json without evaluating (annotations not needed)')
    return parser.parse_args()


def set_metrics(cfg, metrics: list[str] | None, format_only: bool) -> None:
    """Tell the config's CocoMetric what to compute."""
    from mmdet.config.load import has_mask_head

    evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
    coco = [e for e in evaluators if e.get('type') == 'CocoMetric']
    if not coco:
        raise UserError('--eval and --format-only need a CocoMetric in test_evaluator, the config has '
                        f'{", ".join(e.get("type", "?") for e in evaluators)}')
    if 'segm' in (metrics or []) and not has_mask_head(cfg):
        raise UserError(f'--eval segm: {cfg.model.type} of this config has no mask head; use --eval bbox')
    for evaluator in coco:
        if metrics:
            evaluator.metric = metrics
        if format_only:
            evaluator.format_only = True
            if not evaluator.get('outfile_prefix'):
                evaluator.outfile_prefix = str(Path(cfg.work_dir) / 'results')


def main() -> None:
    args = parse_args()
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        raise UserError(f'--out {args.out}: the file name must end with .pkl')
    if args.out and Path(args.out).is_dir():
        raise UserError(f'--out {args.out} is a folder; a file name is needed')
    launcher = start_processes(args)

    from mmdet.checkpoints import adapt_config, needs_legacy_options
    from mmdet.config.check import check_values
    from mmdet.config.load import check_types, load_config
    from mmdet.config.output import check_writable
    from mmdet.engine.runner import build_runner, on_rank_0
    from mmdet.evaluation import DumpDetResults

    cfg = load_config(args.config, args.cfg_options)
    check_types(cfg)
    cfg.work_dir = args.work_dir or f'work_dirs/{Path(args.config).stem}/test'
    if cfg.get('test_evaluator') is None or cfg.get('test_dataloader') is None:
        raise UserError(f'{args.config} has no test_dataloader and test_evaluator: nothing to test on')
    if args.eval or args.format_only:
        set_metrics(cfg, args.eval, args.format_only)
    if args.show_dir:
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(
            type='DetVisualizationHook', out_dir=args.show_dir, score_thr=args.show_score_thr)]
    check_values(cfg, training=False)
    join_processes(launcher, cfg.get('env_cfg'))
    folders = {'--work-dir': cfg.work_dir, '--show-dir': args.show_dir, '--out': args.out and Path(args.out).parent}
    on_rank_0(lambda: [check_writable(folder, option) for option, folder in folders.items() if folder])
    is_legacy = on_rank_0(lambda: needs_legacy_options(args.checkpoint))  # before the data set is read
    adapt_config(cfg, args.checkpoint, is_legacy)
    runner = build_runner(cfg, launcher, checkpoint=args.checkpoint)
    if args.out:
        runner.test_evaluator.metrics.insert(0, DumpDetResults(args.out))  # kept, should the evaluation fail
    runner.test()
    leave_processes()


if __name__ == '__main__':
    run_main(main)
