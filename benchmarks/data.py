"""Time of the data pipeline, by transform, and of the COCO evaluation against pycocotools.

    python benchmarks/data.py --ann data/coco/annotations/instances_val2017.json --img data/coco/val2017

The pipeline is that of Mask R-CNN at 1333x800, once with polygons kept and once drawn as bitmaps at loading
(`poly2mask=True`). The evaluation repeats the file's images to 1,000 with 100 detections each: its objects
moved about, and random boxes, with ellipses for masks. It starts from predictions in memory, in batches of 4, and ends
with the summary. CPU time of one thread; runs alternate, medians are printed. First of all, the memory
that evaluating 5,000 images with 100 masks each takes.
"""

import argparse
import contextlib
import io
import json
import logging
import os
import resource
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmdet.datasets import CocoDataset
from mmdet.evaluation import CocoMetric

ITEMS = ['mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l']


def pipeline(poly2mask):
    return [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_mask=True, poly2mask=poly2mask),
        dict(type='Resize', scale=(1333, 800), keep_ratio=True),
        dict(type='RandomFlip', prob=0.5),
        dict(type='PackDetInputs'),
    ]


def time_pipeline(ann_file, folder, rounds):
    classes = [c['name'] for c in json.loads(Path(ann_file).read_text())['categories']]
    kwargs = dict(ann_file=ann_file, data_prefix=dict(img=folder), metainfo=dict(classes=classes))
    kwargs['filter_cfg'] = dict(filter_empty_gt=True, min_size=32)
    sets = [CocoDataset(pipeline=pipeline(poly2mask), **kwargs) for poly2mask in (False, True)]
    count = min(len(sets[0]), 200)
    spent = [[defaultdict(float) for _ in range(rounds)] for _ in sets]
    for repeat in range(-1, rounds):  # the first round only warms the file cache
        for which, dataset in enumerate(sets):
            np.random.seed(0)
            for index in range(count):
                results = dataset.get_data_info(index)
                for step in dataset.pipeline.transforms:
                    start = time.process_time()
                    results = step(results)
                    if repeat >= 0:
                        spent[which][repeat][type(step).__name__] += time.process_time() - start
    print(f'{count} images, CPU ms per image, median of {rounds} rounds')
    print(f'{"":20}{"polygons":>10}{"bitmaps":>10}')
    totals = np.zeros(2)
    for step in spent[0][0]:
        ms = np.array([np.median([r[step] for r in of_set]) / count * 1e3 for of_set in spent])
        totals += ms
        print(f'{step:20}{ms[0]:10.2f}{ms[1]:10.2f}')
    print(f'{"sum":20}{totals[0]:10.2f}{totals[1]:10.2f}')


def by_image(annotations):
    groups = defaultdict(list)
    for annotation in annotations:
        groups[annotation['image_id']].append(annotation)
    return groups


def repeated_truth(content, count):
    """The file's images, repeated with new ids."""
    of_image = by_image(content['annotations'])
    images, annotations = [], []
    for number in range(1, count + 1):
        image = content['images'][number % len(content['images'])]
        images.append(dict(image, id=number))
        for annotation in of_image[image['id']]:
            annotations.append(dict(annotation, id=len(annotations) + 1, image_id=number))
    return dict(images=images, annotations=annotations, categories=content['categories'])


def detections(truth, per_image, rng):
    """One image after the other: objects moved about, then random boxes, with ellipses for masks."""
    label = {c['id']: k for k, c in enumerate(truth['categories'])}
    of_image = by_image(truth['annotations'])
    angle = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    ellipse = np.stack([np.cos(angle), np.sin(angle)], axis=1) / 2 + 0.5
    for image in truth['images']:
        size = np.array([image['width'], image['height']])
        low = rng.uniform(0, 0.8, (per_image, 2)) * size
        boxes = np.concatenate([low, low + rng.uniform(0.02, 0.2, (per_image, 2)) * size], axis=1)
        labels = rng.integers(len(label), size=per_image)
        for i, annotation in enumerate(of_image[image['id']][:per_image]):
            x, y, w, h = annotation['bbox']
            boxes[i] = np.array([x, y, x + w, y + h]) + rng.normal(0, 0.08, 4) * (w, h, w, h)
            labels[i] = label[annotation['category_id']]
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        polygons = [(ellipse * (b[2:] - b[:2]) + b[:2]).ravel().tolist() for b in boxes]
        pred = dict(
            bboxes=torch.from_numpy(boxes).float(),
            scores=torch.from_numpy(rng.random(per_image)).float(),
            labels=torch.from_numpy(labels),
            masks=coco_mask.frPyObjects(polygons, image['height'], image['width']),
        )
        yield dict(img_id=image['id'], pred_instances=pred)


def run_pycocotools(gt, results_file, kind):
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(gt, gt.loadRes(results_file), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[: len(ITEMS)]


def run_metric(metric, samples, kind):
    for start in range(0, len(samples), 4):
        metric.process(None, samples[start:start + 4])
    values = metric.evaluate(len(samples))
    return np.array([values[f'coco/{kind}_{item}'] for item in ITEMS])


def time_evaluation(ann_file, count, per_image, rounds):
    truth = repeated_truth(json.loads(Path(ann_file).read_text()), count)
    samples = list(detections(truth, per_image, np.random.default_rng(0)))
    classes = tuple(c['name'] for c in truth['categories'])
    print(f'\n{count} images, {per_image} detections each, CPU seconds, median of {rounds} rounds')
    print(f'{"":8}{"pycocotools":>13}{"CocoMetric":>13}{"ratio":>8}{"largest difference":>21}')
    with tempfile.TemporaryDirectory() as folder:
        path = f'{folder}/truth.json'
        Path(path).write_text(json.dumps(truth))
        for kind in ('bbox', 'segm'):
            metric = CocoMetric(path, kind, metric_items=ITEMS, outfile_prefix=f'{folder}/results')
            metric.dataset_meta = dict(classes=classes)
            run_metric(metric, samples, kind)  # writes the files that pycocotools reads
            metric.outfile_prefix = None
            with contextlib.redirect_stdout(io.StringIO()):
                gt = COCO(path)
            seconds = [[], []]
            for _ in range(rounds):
                start = time.process_time()
                expected = run_pycocotools(gt, f'{folder}/results.{kind}.json', kind)
                seconds[0].append(time.process_time() - start)
                start = time.process_time()
                got = run_metric(metric, samples, kind)
                seconds[1].append(time.process_time() - start)
            theirs, ours = map(np.median, seconds)
            difference = np.abs(got - expected).max()
            print(f'{kind:8}{theirs:13.2f}{ours:13.2f}{ours / theirs:8.3f}{difference:21.1e}')


def measure_memory(ann_file, count, per_image):
    truth = repeated_truth(json.loads(Path(ann_file).read_text()), count)
    with tempfile.TemporaryDirectory() as folder:
        path = f'{folder}/truth.json'
        Path(path).write_text(json.dumps(truth))
        metric = CocoMetric(path, 'segm')
        metric.dataset_meta = dict(classes=tuple(c['name'] for c in truth['categories']))
        before = int(Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize() / 2**20
        for sample in detections(truth, per_image, np.random.default_rng(0)):
            metric.process(None, [sample])
        metric.evaluate(count)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f'{count} images, {per_image} masks each: {before:.0f} MiB with the annotations, at most {peak:.0f} MiB\n')


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--ann', required=True, help='COCO-format annotation file with polygons')
    parser.add_argument('--img', required=True, help='folder of its images')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--images', type=int, default=1000, help='for the evaluation; fivefold for its memory')
    parser.add_argument('--detections', type=int, default=100, help='of an image, for the evaluation')
    parts = ['memory', 'pipeline', 'time']
    parser.add_argument('--parts', nargs='+', default=parts, choices=parts)
    args = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    os.environ['RAYON_NUM_THREADS'] = '1'  # hotcoco's
    logging.disable(logging.WARNING)
    if 'memory' in args.parts:  # first: the peak is that of the whole process
        measure_memory(args.ann, 5 * args.images, args.detections)
    if 'pipeline' in args.parts:
        time_pipeline(args.ann, args.img, args.rounds)
    if 'time' in args.parts:
        time_evaluation(args.ann, args.images, args.detections, args.rounds)


if __name__ == '__main__':
    main()
