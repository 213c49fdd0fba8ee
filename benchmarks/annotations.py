"""Reading an annotation file of COCO's size: python -m benchmarks.annotations [--processes 4]

Writes a file like instances_train2017.json (118,287 images, 860,001 objects, 442 MB) and builds a `CocoDataset` of it
in fresh processes: without a cache, with one, and in several processes at once.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np

IMAGES, OBJECTS = 118_287, 860_001
ROOT = Path(__file__).resolve().parents[1]


def write_annotations(path: Path, images: int = IMAGES, objects: int = OBJECTS, seed: int = 0) -> None:
    """As COCO's: 80 categories with gaps in their ids, a polygon of some 20 points for each object, 1 % crowds."""
    from mmdet.datasets.coco import COCO_CLASSES

    rng = np.random.default_rng(seed)
    ids = np.sort(rng.choice(600_000, images, replace=False)) + 1
    categories = [dict(id=i + 1 + i // 9, name=name) for i, name in enumerate(COCO_CLASSES)]
    with open(path, 'w') as file:
        file.write('{"info": {"description": "made by benchmarks/annotations.py"}, "licenses": [], "images": [')
        file.write(', '.join(
            f'{{"license": 3, "file_name": "{i:012d}.jpg", "coco_url": "http://images.cocodataset.org/train2017/{i:012d}'
            f'.jpg", "height": 480, "width": 640, "date_captured": "2013-11-14 11:18:45", "id": {i}}}' for i in ids))
        file.write(f'], "categories": {str(categories).replace(chr(39), chr(34))}, "annotations": [')
        for start in range(0, objects, 10_000):
            count = min(10_000, objects - start)
            sizes = rng.uniform(4, 200, (count, 2)).round(2)
            corners = (rng.uniform(0, 1, (count, 2)) * ([640, 480] - sizes)).round(2)
            points = rng.geometric(1 / 20, count) + 2
            lines = []
            for k in range(count):
                (x, y), (w, h) = corners[k], sizes[k]
                if rng.random() < 0.01:
                    mask = '{"counts": [' + ', '.join(map(str, rng.integers(1, 99, 300))) + '], "size": [480, 640]}'
                    crowd = 1
                else:
                    parts = np.round(corners[k] + rng.random((points[k], 2)) * sizes[k], 2).ravel()
                    mask, crowd = f'[[{", ".join(map(str, parts.tolist()))}]]', 0
                lines.append(f'{{"segmentation": {mask}, "area": {w * h / 2:.4f}, "iscrowd": {crowd}, "image_id": '
                             f'{ids[rng.integers(images)]}, "bbox": [{x}, {y}, {w}, {h}], "category_id": '
                             f'{categories[rng.integers(80)]["id"]}, "id": {start + k + 1}}}')  # fmt: skip
            file.write(', ' * (start > 0) + ', '.join(lines))
        file.write(']}')


def private_memory() -> float:
    """MB of this process that no other shares."""
    lines = Path('/proc/self/smaps_rollup').read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith('Private')) / 1024


def build(path: str) -> None:
    from mmdet.datasets import CocoDataset

    before, start, cpu = private_memory(), time.perf_counter(), time.process_time()
    with patch('os.path.isfile', return_value=True):  # there are no images
        dataset = CocoDataset(ann_file=path, filter_cfg=dict(filter_empty_gt=True))
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    private = private_memory() - before
    start = time.perf_counter()
    for index in range(0, len(dataset), len(dataset) // 2000):
        dataset.get_data_info(index)
    each = (time.perf_counter() - start) / 2000
    print(f'{seconds:6.1f} s ({cpu:.1f} s CPU), peak {peak:5.0f} MB, then {private:4.0f} MB private above the imports, '
          f'{1e6 * each:4.0f} us an image, {len(dataset)} images')  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--processes', type=int, default=4, help='that read at once (default: %(default)s)')
    parser.add_argument('--file', help='an annotation file (default: one that is made, in a temporary folder)')
    parser.add_argument('--build', metavar='FILE', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.build:
        return build(args.build)
    with tempfile.TemporaryDirectory() as folder:
        path = args.file or f'{folder}/instances.json'
        if not os.path.exists(path):
            write_annotations(Path(path))
        print(f'{path}: {os.path.getsize(path) / 1e6:.0f} MB')
        command = [sys.executable, '-m', 'benchmarks.annotations', '--build', path]
        env = dict(os.environ, MMDET_CACHE=f'{folder}/cache')
        for title, count in (('without a cache', 1), ('with one', 1), (f'{args.processes} at once', args.processes)):
            print(title, flush=True)
            running = [subprocess.Popen(command, env=env, cwd=ROOT) for _ in range(count)]
            if any([process.wait() for process in running]):
                raise SystemExit(1)


if __name__ == '__main__':
    main()
