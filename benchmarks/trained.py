"""What `--amp` and `--compile` make of a trained detector: its AP, its detections, and the time of its test images.

    python benchmarks/trained.py CONFIG CHECKPOINT [--images 100] [--sizes 10] [--clock cpu]

The ways take turns on each image. `first image` is longer than the others by what is packed or compiled; it is not in
the sum. A detection in float32 is found again where there is one of the same label, its box within a pixel, its score
within 0.02. `--sizes N` resizes the first images to N sizes that no way has seen, and counts what is compiled anew.
"""

import copy
import itertools
import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from common import Clock, add_options, machine, parser_of, table
from inference import found_again, sizes
from mmengine.dataset import pseudo_collate
from torch import Tensor, nn
from torch._dynamo.utils import counters

from mmdet.apis import init_detector
from mmdet.apis.inference import detect
from mmdet.registry import DATASETS, METRICS
from mmdet.structures import DetDataSample

WAYS = {
    'float32': {},
    'amp': dict(amp=True),
    'compile': dict(compile=True),
    'amp, compile': dict(amp=True, compile=True),
}


class Way:
    """A detector as `init_detector` gives it, and what it took so far."""

    def __init__(self, name: str, args):
        self.model: nn.Module = init_detector(args.config, args.checkpoint, device='cpu', **WAYS[name])
        self.clock, self.ms, self.found, self.graphs = Clock(args), [], [], 0

    def see(self, batch: dict) -> None:
        before, batch = counters['stats']['unique_graphs'], copy.deepcopy(batch)
        self.ms.append(self.clock.time(lambda: self.found.extend(detect(self.model, batch))))
        self.graphs += counters['stats']['unique_graphs'] - before


def again(expected: list[DetDataSample], got: list[DetDataSample]) -> float:
    """Percent of the detections on all images."""
    total = sum(len(sample.pred_instances) for sample in expected)
    return sum(len(e.pred_instances) * found_again(arrays(e), arrays(g)) for e, g in zip(expected, got)
               if len(e.pred_instances)) / max(total, 1)  # fmt: skip


def arrays(sample: DetDataSample) -> tuple[Tensor, ...]:
    found = sample.pred_instances
    return found.bboxes, found.scores, found.labels


def resized(batch: dict, size: torch.Size) -> dict:
    batch = copy.deepcopy(batch)
    batch['inputs'] = [F.interpolate(image[None].float(), size)[0].to(image.dtype) for image in batch['inputs']]
    for sample in batch['data_samples']:
        sample.set_metainfo(dict(img_shape=tuple(size), ori_shape=tuple(size), scale_factor=(1.0, 1.0)))
    return batch


def main() -> None:
    parser = parser_of(__doc__)
    add_options(parser, repeats=1)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('--ways', nargs='+', default=list(WAYS), choices=list(WAYS))
    parser.add_argument('--images', type=int, help='default: all of the test set')
    parser.add_argument('--sizes', type=int, default=10, metavar='N')
    args = parser.parse_args()
    ways = {name: Way(name, args) for name in dict.fromkeys(['float32', *args.ways])}
    cfg = ways['float32'].model.cfg
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    batches = [pseudo_collate([dataset[i]]) for i in range(min(len(dataset), args.images or len(dataset)))]
    print(f'{machine(args)}; {Path(args.config).name}, {len(batches)} images')
    for batch in batches:
        for way in ways.values():
            way.see(batch)
    rows, plain = [], ways['float32']
    for name, way in ways.items():
        metric = METRICS.build(cfg.test_evaluator)
        metric.dataset_meta = dataset.metainfo
        metric.process(None, [sample.to_dict() for sample in way.found])
        values = metric.evaluate(len(batches))
        ap = [f'{100 * value:.2f}' for key, value in values.items() if key.endswith('mAP')]
        first, *ms = way.ms
        rows.append([name, *ap, f'{again(plain.found, way.found):.1f}', f'{first / 1000:.1f}', f'{sum(ms) / 1000:.1f}',
                     f'{sum(plain.ms[1:]) / sum(ms):.2f}'])  # fmt: skip
    kinds = [f'{key.split("/")[-1].split("_")[0]} AP' for key in values if key.endswith('mAP')]
    table(['way', *kinds, 'found again, %', 'first image, s', 'the others, s', 'float32 / it'], rows)
    if args.sizes:
        for way in ways.values():
            way.ms, way.found, way.graphs = [], [], 0
        for image, batch in zip(sizes(args.sizes), itertools.cycle(batches)):
            for way in ways.values():
                way.see(resized(batch, image.shape[-2:]))
        rows = [[name, ', '.join(f'{ms:.0f}' for ms in way.ms), f'{again(plain.found, way.found):.1f}', way.graphs]
                for name, way in ways.items()]  # fmt: skip
        table(['way', f'{args.clock} ms of each size', 'found again, %', 'compiled anew'], rows)


if __name__ == '__main__':
    main()
