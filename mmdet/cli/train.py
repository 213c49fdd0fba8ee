"""Train a detector."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmdet.cli.legacy import modern_arguments
from mmdet.cli.parser import Parser, start_processes
from mmdet.engine.launch import join_processes, leave_processes


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser('Train a detector.', [
        'cbn/mask_rcnn_r50_fpn_cbn_buffer3_burnin8_1x --gpus 4',
        'my_config.py --resume',
        'my_config.py --auto-scale-lr --cfg-options train_cfg.max_epochs=24',
    ])
    parser.add_config_arguments('optim_wrapper.optimizer.lr=0.01')
    parser.add_process_arguments()
    parser.add_argument('--work-dir', help='folder of logs and checkpoints (default: work_dirs/CONFIG_NAME)')
    parser.add_argument('--resume', nargs='?', const=True, default=False, metavar='CHECKPOINT',
                        help='resume an interrupted run, from this checkpoint or the newest that loads')
    parser.add_argument('--amp', action='store_true',
                        help='mixed precision: float16 on GPU, bfloat16 on a CPU that has instructions for it')
    parser.add_argument('--auto-scale-lr', action='store_true',
                        help="scale the learning rate by batch size / the config's auto_scale_lr.base_batch_size")
    parser.add_argument('--seed', type=int, help='seed of all randomness (default: a random one, which is logged)')
    parser.add_argument('--deterministic', action='store_true', help='only algorithms that give the same bits')
    return parser.parse_args(modern_arguments(argv))


def read(args: argparse.Namespace) -> Any:
    """The config, checked, as far as one process can for all of them."""
    from mmdet.checkpoints import existing_file
    from mmdet.config.check import check_files, check_values
    from mmdet.config.load import check_types, load_config

    cfg = load_config(args.config, args.cfg_options)
    check_types(cfg)
    check_values(cfg, training=True)
    check_files(cfg, training=True)
    if isinstance(args.resume, str):
        existing_file(args.resume)
    return cfg


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    launcher = start_processes(args, lambda: read(args))

    from mmdet.engine.amp import use_amp
    from mmdet.engine.runner import build_runner
    from mmdet.engine.schedule import scale_learning_rate
    from mmdet.engine.seeding import set_seed
    from mmdet.engine.work_dir import enter_work_dir

    cfg = read(args)
    join_processes(launcher, cfg.get('env_cfg'))
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    if args.amp:
        use_amp(cfg)
    if args.auto_scale_lr:
        scale_learning_rate(cfg)
    resume_from = enter_work_dir(cfg, args.resume or cfg.get('resume', False))
    set_seed(cfg, args.seed, args.deterministic, resume_from)
    build_runner(cfg, launcher, resume_from).train()
    leave_processes()
