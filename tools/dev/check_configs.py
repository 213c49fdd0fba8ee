"""Which configs run here: python tools/dev/check_configs.py CONFIG... [--data-root COCO]

For each config file, one line: 'ok', or what stands in the way. Checked are the types and options of everything that
training and testing build: the model (without weights), pipelines, data sets, loops, hooks, metrics, visualizer.
With --data-root, a folder laid out as COCO 2017, the annotation files are read as well.
"""

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mmdet.cli.parser import Parser
from mmdet.config.errors import UserError, mistake_in, one_line, run_main

# Stands in for the model while the other parts are built: they do not depend on it.
SMALL_MODEL = dict(
    type='RPN',
    backbone=dict(type='ResNet', depth=18, base_channels=8),
    neck=dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=8, num_outs=5),
    rpn_head=dict(type='RPNHead', in_channels=8, feat_channels=8),
)


def steps_of(dataset: dict) -> Iterator[dict]:
    """The steps of its pipeline and of those of the data sets in it (ConcatDataset, RepeatDataset)."""
    yield from dataset.get('pipeline', ())
    for part in dataset.get('datasets') or filter(None, [dataset.get('dataset')]):
        yield from steps_of(part)


def check(path: str, data_root: str | None, work_dir: str) -> None:
    import torch

    from mmdet.config.load import check_types, load_config
    from mmdet.engine.runner import build_runner, drop_pretrained
    from mmdet.engine.seeding import set_seed
    from mmdet.registry import DATASETS, MODELS, TRANSFORMS

    cfg = load_config(path)
    check_types(cfg)
    if 'model' not in cfg:
        raise UserError('no config of a model: a part for others to build on')
    drop_pretrained(cfg.model)
    with torch.device('meta'):
        MODELS.build(cfg.model)
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        for step in steps_of((cfg.get(key) or {}).get('dataset') or {}):
            if step['type'] != 'LoadProposals':  # reads its file at once
                TRANSFORMS.build(step)
    if data_root is None:
        return
    cfg = load_config(path, dict(data_root=data_root))
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if cfg.get(key):
            DATASETS.build(cfg[key].dataset)
    cfg.model, cfg.work_dir = SMALL_MODEL, work_dir
    set_seed(cfg, 0, False, None)
    runner = build_runner(cfg)
    runner.train_loop, runner.val_loop  # noqa: B018 - properties that build
    runner.test_loop  # noqa: B018


def main() -> None:
    parser = Parser('Which configs run here.')
    parser.add_argument('configs', nargs='+')
    parser.add_argument('--data-root')
    args = parser.parse_args()
    counts = Counter()
    with tempfile.TemporaryDirectory() as work_dir:
        for path in args.configs:
            try:
                check(path, args.data_root and args.data_root.rstrip('/') + '/', work_dir)
                outcome = 'ok'
            except Exception as error:
                outcome = mistake_in(error) or f'{type(error).__name__}, unexplained: {one_line(error)}'
            counts['ok' if outcome == 'ok' else 'refused'] += 1
            print(f'{Path(path).stem:60} {outcome}', flush=True)
    print(', '.join(f'{count} {name}' for name, count in counts.items()))


if __name__ == '__main__':
    run_main(main)
