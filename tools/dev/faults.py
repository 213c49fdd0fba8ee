"""Fault campaign: python tools/dev/faults.py [--minutes 10] [--seed 0] [--only kills|disk|fuzz]

Trains a small Mask R-CNN on generated shapes, with one and two processes, and does to it what machines do: kill -9,
SIGTERM and Ctrl-C while it starts, trains, saves and evaluates, and a full disk. Each run is resumed until it is done,
and its weights and optimizer are compared to the bit with those of a run that nothing happened to. Damaged checkpoints,
pickles and annotation files are read, and the ops are called with wild boxes. Prints a table of counts, and each
finding with what repeats it; the exit status is 1 where there is one.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mmdet.config.errors import UserError, run_main

EPOCHS, HANGS_AFTER = 2, 300
OPTIONS = [
    'data_root=shapes', 'model.backbone.base_channels=8', 'model.neck.in_channels=8,16,32,64', 'norm_cfg.burnin=1',
    'model.neck.out_channels=16', 'model.rpn_head.in_channels=16', 'model.rpn_head.feat_channels=16',
    'model.roi_head.bbox_roi_extractor.out_channels=16', 'model.roi_head.mask_roi_extractor.out_channels=16',
    'model.roi_head.bbox_head.in_channels=16', 'model.roi_head.bbox_head.conv_out_channels=16',
    'model.roi_head.bbox_head.fc_out_channels=16', 'model.roi_head.mask_head.in_channels=16',
    'model.roi_head.mask_head.conv_out_channels=16', f'train_cfg.max_epochs={EPOCHS}', 'train_cfg.val_interval=1',
    'train_pipeline.2.scale=96,96', 'test_pipeline.1.scale=96,96', 'default_hooks.logger.interval=1',
]  # fmt: skip
# Put on PYTHONPATH: the n-th file that is written whole meets a full disk.
FULL_DISK = """
import errno, os
left, fsync = int(os.environ['FULL_AT']), os.fsync
def full(descriptor):
    global left
    left -= 1
    if left < 0:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    fsync(descriptor)
os.fsync = full
"""


class Campaign:
    """Counts, by what was done; `wrong` is what must not be."""

    def __init__(self, minutes: float, seed: int):
        self.end, self.random = time.monotonic() + 60 * minutes, random.Random(seed)
        self.counts, self.wrong = Counter(), []

    def left(self, share: float) -> Callable[[], bool]:
        """Whether there is time left of a share of what is left now."""
        end = time.monotonic() + share * (self.end - time.monotonic())
        return lambda: time.monotonic() < end

    def find(self, text: str) -> None:
        self.wrong.append(text)
        print(f'FOUND {text}', flush=True)


# ---------------------------------------------------------------------- runs that are stopped


def start(folder: str, processes: int, *words: str, **environment: str) -> subprocess.Popen:
    config = ROOT / 'configs' / 'demo' / 'mask_rcnn_r18_fpn_cbn_shapes.py'
    command = [sys.executable, ROOT / 'tools' / 'train.py', config, '--work-dir', folder, '--seed', '0',
               '--gpus', processes, *words, '--cfg-options', *OPTIONS]  # fmt: skip
    path = os.pathsep.join([environment.pop('FIRST', ''), str(ROOT)]).strip(os.pathsep)
    env = dict(PYTHONPATH=path, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='', PYTHONUNBUFFERED='1')
    return subprocess.Popen(list(map(str, command)), env={**os.environ, **env, **environment}, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, start_new_session=True)  # fmt: skip


def phase_of(line: str) -> str:
    words = dict(train='Epoch(train)', evaluation='Epoch(val)', saving='Saving checkpoint')
    return next((name for name, word in words.items() if word in line), 'start')


def finished(process: subprocess.Popen, then: Callable[[str], None] = lambda line: None) -> tuple[int, list[str]]:
    """Its exit status (None where it hangs) and lines, each given to `then` as it comes."""
    lines, began = [], time.monotonic()
    for line in process.stdout:
        lines.append(line.rstrip())
        then(line)
        if time.monotonic() > began + HANGS_AFTER:
            break
    try:
        return process.wait(timeout=HANGS_AFTER), lines
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return None, lines


def trace_in(lines: list[str]) -> list[str]:
    """The first traceback among the lines of a run, and a few lines more."""
    return next((lines[i:i + 20] for i, line in enumerate(lines) if 'Traceback' in line), [])


def final_state(folder: str) -> dict:
    from mmdet.checkpoints import read_checkpoint

    content = read_checkpoint(f'{folder}/epoch_{EPOCHS}.pth')
    return {key: content.get(key) for key in ('state_dict', 'optimizer', 'cbn', 'rank_cbn')}


def same(a, b) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a.equal(b) if hasattr(a, 'equal') else a == b


def stop_and_resume(campaign: Campaign, number: int, processes: int, reference: dict, lines: list[str]) -> None:
    """One run, stopped at a line of a phase drawn by chance, with a delay of up to an iteration; then resumed."""
    name = campaign.random.choice(['SIGKILL'] * 5 + ['SIGTERM', 'SIGINT'])
    phase = campaign.random.choice(['start', 'train', 'saving', 'evaluation'])
    at = campaign.random.choice([i for i, line in enumerate(lines) if phase_of(line) == phase] or [0])
    delay, folder, seen = campaign.random.random() * 0.5, f'run{number}', 0
    process = start(folder, processes)

    def stop(line: str) -> None:
        nonlocal seen
        if seen == at:
            time.sleep(delay)
            os.kill(process.pid, signal.Signals[name])
        seen += 1

    status, said = finished(process, stop)
    where = f'{name}, {phase}, {processes} processes'
    campaign.counts[where] += 1
    how = f'{where}, line {at} + {delay:.2f} s'
    expected = {-signal.Signals[name], 128 + signal.Signals[name], 0}
    if status is None:
        campaign.find(f'a hang: {how}')
    elif status not in expected or trace_in(said):
        campaign.find(f'status {status}: {how}: {trace_in(said) or said[-1:]}')
    deadline = time.monotonic() + 20  # of a killed launcher the processes end by themselves
    while (resumed := finished(start(folder, processes, '--resume')))[0] == 2 and time.monotonic() < deadline:
        time.sleep(1)
    status, said = resumed
    if status != 0:
        campaign.find(f'resumed with status {status}: {how}: {trace_in(said) or said[-5:]}')
    elif not same(final_state(folder), reference):
        campaign.find(f'other weights after the resume: {how}')


def kills(campaign: Campaign, left: Callable[[], bool], references: dict) -> None:
    number = 0
    while left():
        processes = 1 + number % 2
        stop_and_resume(campaign, number, processes, *references[processes])
        number += 1


def full_disk(campaign: Campaign, left: Callable[[], bool], references: dict) -> None:
    Path('full').mkdir()
    Path('full/sitecustomize.py').write_text(FULL_DISK)
    for at in (0, 1, 3, 5):
        if not left():
            return
        status, said = finished(start(f'full{at}', 1, FIRST=str(Path('full').resolve()), FULL_AT=str(at)))
        campaign.counts['disk full'] += 1
        if status not in (0, 1) or trace_in(said):
            campaign.find(f'disk full at file {at}: status {status}: {trace_in(said) or said[-1:]}')
        if finished(start(f'full{at}', 1, '--resume'))[0] != 0 or not same(final_state(f'full{at}'), references[1][0]):
            campaign.find(f'disk full at file {at}: not resumed to the bit')


# ---------------------------------------------------------------------- fuzz


def damaged(rng: random.Random, data: bytes) -> bytes:
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data))
        kind = rng.randrange(3)
        if kind == 0:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[place:place + rng.randint(1, 16)] = rng.randbytes(rng.randint(0, 16))
        else:
            del data[place + 1:]
    return bytes(data) or b'x'


def odd_values(rng: random.Random, node, depth: int = 0):
    """A JSON value with one value in it replaced by one that does not belong there."""
    odd = [None, -1, 0, 1e30, float('nan'), '', 'x', '0', [], {}, [[]], True, 10**30]
    if not isinstance(node, (dict, list)) or not node or depth and rng.random() < 0.2:
        return rng.choice(odd)
    keys = list(node) if isinstance(node, dict) else range(len(node))
    key = rng.choice(keys)
    changed = node.copy()
    if rng.random() < 0.1:
        del changed[key]
    else:
        changed[key] = odd_values(rng, node[key], depth + 1)
    return changed


def read_set(path: str) -> None:
    from mmdet.registry import DATASETS, METRICS

    steps = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
             dict(type='PackDetInputs')]  # fmt: skip
    dataset = DATASETS.build(dict(type='CocoDataset', ann_file=path, data_root='shapes', pipeline=steps,
                                  data_prefix=dict(img='val/')))  # fmt: skip
    for index in range(len(dataset)):
        dataset[index]
    METRICS.build(dict(type='CocoMetric', ann_file=f'shapes/{path}', metric=['bbox', 'segm']))


def wild_ops(rng: random.Random) -> None:
    import torch

    from mmdet import ops

    values = [0.0, 1.0, -1.0, 0.5, 30.0, 1e10, -1e30, 3e38, float('nan'), float('inf')]
    boxes = torch.tensor([[rng.choice(values) for _ in range(4)] for _ in range(rng.randint(0, 6))]).reshape(-1, 4)
    scores = torch.tensor([rng.choice(values) for _ in boxes]).reshape(-1)
    labels = torch.zeros(len(boxes), dtype=torch.long)
    ops.nms(boxes, scores, rng.choice([0.0, 0.5, 1.0]))
    ops.batched_nms(boxes, scores, labels, 0.5)
    feature = torch.ones(1, 2, rng.choice([0, 1, 7]), 9)
    ops.roi_align(feature, torch.cat([boxes.new_zeros(len(boxes), 1), boxes], 1), 3, 0.25, rng.choice([0, 2]), True)
    ops.paste_masks(torch.ones(len(boxes), 4, 4), boxes, (9, 11))


def trials(campaign: Campaign, folder: str) -> Iterator[tuple[str, Callable[[random.Random], None]]]:
    """What is fuzzed: a name, and a trial that raises nothing but a UserError or a ValueError."""
    import pickle

    import torch

    from mmdet.checkpoints import read_checkpoint

    whole = Path(folder, f'epoch_{EPOCHS}.pth').read_bytes()
    plain = pickle.dumps({key: value.numpy() for key, value in read_checkpoint(f'{folder}/epoch_{EPOCHS}.pth')[
        'state_dict'].items() if isinstance(value, torch.Tensor)}, protocol=2)[:200_000] + b'u.'  # fmt: skip
    small = pickle.dumps({'a': torch.ones(3).numpy(), 'b': [1, 2.0, 'x']}, protocol=2)
    content = json.loads(Path('shapes/annotations/instances_val.json').read_text())

    def read(name: str, data: bytes) -> None:
        Path(name).write_bytes(data)
        read_checkpoint(name)

    def annotations(rng: random.Random) -> None:
        Path('shapes/odd.json').write_text(json.dumps(odd_values(rng, content)))
        read_set('odd.json')

    yield 'checkpoints', lambda rng: read('odd.pth', damaged(rng, whole))
    yield 'pickles', lambda rng: read('odd.pkl', damaged(rng, rng.choice([plain, small, small])))
    yield 'annotations', annotations
    yield 'ops', wild_ops


def fuzz(campaign: Campaign, left: Callable[[], bool], references: dict) -> None:
    kinds = list(trials(campaign, 'reference1'))
    while left():
        for name, trial in kinds:
            seed = campaign.random.randrange(2**32)
            campaign.counts[f'fuzz of {name}'] += 1
            began = time.monotonic()
            try:
                trial(random.Random(seed))
            except (UserError, ValueError):
                pass
            except Exception as error:
                campaign.find(f'fuzz of {name}, seed {seed}: {type(error).__name__}: {error}')
            if time.monotonic() > began + 20:
                campaign.find(f'fuzz of {name}, seed {seed}: {time.monotonic() - began:.0f} s')


# ----------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--minutes', type=float, default=10)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--only', choices=('kills', 'disk', 'fuzz'))
    args = parser.parse_args()

    from mmdet.engine import hooks  # noqa: F401  makes reading safe
    from projects.demo.shapes import write_shapes

    campaign = Campaign(args.minutes, args.seed)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_shapes('shapes', train=8, val=4, size=96)
        references = {}
        for processes in (1, 2) if args.only != 'fuzz' else (1,):
            status, lines = finished(start(f'reference{processes}', processes))
            if status != 0:
                raise UserError(f'the run without faults ended with status {status}: {lines[-1:]}')
            references[processes] = final_state(f'reference{processes}'), lines
        for name, part, share in (('disk', full_disk, 0.15), ('fuzz', fuzz, 0.25), ('kills', kills, 1.0)):
            if args.only in (None, name):
                part(campaign, campaign.left(share if args.only is None else 1.0), references)
        os.chdir(ROOT)
    width = max(map(len, campaign.counts), default=0)
    for name, count in sorted(campaign.counts.items()):
        print(f'{name:{width}} {count:7}')
    print(f'{sum(campaign.counts.values())} faults, {len(campaign.wrong)} findings')
    sys.exit(bool(campaign.wrong))


if __name__ == '__main__':
    run_main(main)
