"""What the benchmarks share: options, a clock, medians of jobs that take turns, tables, and a made-up batch."""

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')  # spinning threads make a shared machine's times random

import numpy as np
import torch


def parser_of(text: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_options(parser: argparse.ArgumentParser, repeats: int | None) -> None:
    """The options that say where and how time is taken."""
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--repeats', type=int, default=repeats, help='rounds, of which the median is taken')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads(), help='CPU threads (default: all)')
    parser.add_argument('--clock', default='wall', choices=['wall', 'cpu'],
                        help='cpu: processor time, for a machine that others use too (with --threads 1)')


def machine(args: argparse.Namespace) -> str:
    where = torch.cuda.get_device_name() if args.device == 'cuda' else f'CPU, {args.threads} threads'
    return f'{where}, {args.clock} time, torch {torch.__version__}'


class Clock:
    """Milliseconds by the clock and on the device of `args`."""

    def __init__(self, args: argparse.Namespace):
        torch.set_num_threads(args.threads)
        self.now = time.process_time if args.clock == 'cpu' else time.perf_counter
        self.wait = torch.cuda.synchronize if args.device == 'cuda' else lambda: None

    def time(self, job: Callable, times: int = 1) -> float:
        """Of one call of `job`, of `times` without a wait between them."""
        self.wait()
        start = self.now()
        for _ in range(times):
            job()
        self.wait()
        return (self.now() - start) * 1e3 / times

    def medians(self, jobs: dict[str, Callable], rounds: int, times: int = 1, warm_up: int = 1) -> dict[str, float]:
        """Of each job, the jobs taking turns in each round; the first `warm_up` rounds do not count."""
        spent = [{name: self.time(job, times) for name, job in jobs.items()} for _ in range(warm_up + rounds)]
        return {name: statistics.median(row[name] for row in spent[warm_up:]) for name in jobs}


def table(head: list[str], rows: list[list]) -> None:
    """Print a Markdown table."""
    print('\n| ' + ' | '.join(head) + ' |\n|' + '---|' * len(head))
    for row in rows:
        print('| ' + ' | '.join(map(str, row)) + ' |')
    print(flush=True)


def made_up_batch(count: int, height: int, width: int, objects: int = 10, num_classes: int = 80) -> dict:
    """Blurred noise (N, 3, H, W) uint8, and of each image boxes (G, 4), labels (G,), elliptic outlines [(24, 2)].

    What is seen changes nothing but how much is found.
    """
    random, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, max(height // 16, 2), max(width // 16, 2), generator=generator)
    images = torch.nn.functional.interpolate(coarse, (height, width), mode='bicubic').clamp(0, 1) * 255
    boxes, labels, outlines = [], [], []
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    for _ in range(count):
        centre, size = random.uniform(0.2, 0.8, (objects, 2)), random.uniform(0.05, 0.4, (objects, 2))
        corners = np.concatenate([centre - size / 2, centre + size / 2], 1) * ([width, height] * 2)
        boxes.append(corners.clip(0, [width, height] * 2).astype(np.float32))
        labels.append(random.integers(0, num_classes, objects))
        outlines.append([
            np.stack([(a + c + (c - a) * np.cos(angle)) / 2, (b + d + (d - b) * np.sin(angle)) / 2], 1)
            for a, b, c, d in boxes[-1]
        ])
    return dict(images=images.to(torch.uint8), boxes=boxes, labels=labels, outlines=outlines)


def bitmaps(outlines: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """(G, H, W) uint8."""
    from pycocotools import mask as coco_mask

    rles = [coco_mask.frPyObjects([outline.ravel().tolist()], height, width) for outline in outlines]
    return np.stack([coco_mask.decode(rle)[..., 0] for rle in rles])


def data_of(batch: dict, masks_of: Callable) -> dict:
    """A made-up batch as a data loader gives it, here and in mmdetection 3.

    `masks_of(outlines, height, width)` makes the library's masks.
    """
    from mmengine.structures import InstanceData

    from mmdet.structures import DetDataSample

    size = tuple(batch['images'].shape[-2:])
    samples = []
    for i, (boxes, labels, outlines) in enumerate(zip(batch['boxes'], batch['labels'], batch['outlines'])):
        sample = DetDataSample(metainfo=dict(img_id=i, img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0)))
        sample.gt_instances = InstanceData(
            bboxes=torch.from_numpy(boxes), labels=torch.from_numpy(labels), masks=masks_of(outlines, *size)
        )
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
        samples.append(sample)
    return dict(inputs=list(batch['images']), data_samples=samples)


def polygon_data(batch: dict) -> dict:
    """A made-up batch as this project's data loader gives it: masks are polygons."""
    from mmdet.structures.masks import PolygonMasks

    return data_of(batch, lambda outlines, h, w: PolygonMasks([[o.ravel()] for o in outlines], h, w))
