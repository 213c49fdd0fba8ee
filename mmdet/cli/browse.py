"""Look at the data as the network sees it."""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mmdet.cli.parser import Parser, text_table
from mmdet.config.errors import UserError

SIDES = {'small': 32, 'medium': 96, 'large': float('inf')}  # pixels, where COCO's metric draws the lines


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("Count a data set's objects and draw some of its images as they leave the config's pipeline.",
                    ['my_config.py', 'my_config.py --split val --number 4 --out-dir looked_at'])
    parser.add_config_arguments('train_dataloader.dataset.ann_file=mine.json')
    parser.add_argument('--split', choices=('train', 'val', 'test'), default='train', help='default: %(default)s')
    parser.add_argument('--number', type=int, default=16, help='images to draw (default: %(default)s)')
    parser.add_argument('--out-dir', default='browse', help='folder of the drawings (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='which images, and how they are augmented')
    return parser.parse_args(argv)


def table_of_objects(dataset) -> str:
    """Objects of each class by size, and the images they are in."""
    classes = dataset.metainfo['classes']
    sizes, images, crowds, empty = Counter(), Counter(), 0, 0
    for index in range(len(dataset)):
        instances = dataset.get_data_info(index)['instances']
        objects = [x for x in instances if not x['ignore_flag']]
        crowds += len(instances) - len(objects)
        empty += not objects
        images.update({x['bbox_label'] for x in objects})
        for x in objects:
            x1, y1, x2, y2 = x['bbox']
            area = max((x2 - x1) * (y2 - y1), 0)
            sizes[x['bbox_label'], next(name for name, side in SIDES.items() if area < side**2)] += 1
    rows = [
        [name, sum(sizes[label, size] for size in SIDES), *(sizes[label, size] for size in SIDES), images[label]]
        for label, name in enumerate(classes)
    ]
    rows.append(['all', *(sum(row[i] for row in rows) for i in range(1, 5)), len(dataset) - empty])
    table = text_table([['class', 'objects', *(f'{n} boxes' for n in SIDES), 'images'], *rows], total=True)
    return f'{table}\n{len(dataset)} images, {empty} of them without objects; {crowds} ignored regions'


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)

    import numpy as np
    from mmengine.registry import init_default_scope
    from mmengine.runner import set_random_seed

    from mmdet.config.load import check_types, load_config
    from mmdet.config.output import check_writable
    from mmdet.config.values import names_a, predicted_fields, walk
    from mmdet.datasets.transforms import LoadAnnotations
    from mmdet.registry import DATASETS
    from mmdet.visualization.visualizer import draw_instances, write_image

    if args.number < 0:
        raise UserError(f'--number {args.number}: 0 or more images can be drawn')
    cfg = load_config(args.config, args.cfg_options)
    loader = cfg.get(f'{args.split}_dataloader')
    if loader is None:
        raise UserError(f'{args.config} has no {args.split}_dataloader')
    check_types(cfg)
    check_writable(args.out_dir, '--out-dir')
    init_default_scope('mmdet')
    with_mask = 'masks' in (predicted_fields(cfg.get('model') or {}) or ())
    for _, part in walk(dict(dataset=loader.dataset)):
        steps = part.get('pipeline') if isinstance(part, dict) else None
        if steps and 'dataset' not in part:  # a wrapper's pipeline goes on with what is loaded
            loading = [step for step in steps if names_a(step, LoadAnnotations)]
            if loading and args.split == 'train':
                continue
            # testing does without objects, or loads those of the original image after Resize
            steps[:] = [step for step in steps if step not in loading]
            steps.insert(1, loading[0] if loading else dict(type=LoadAnnotations, with_bbox=True, with_mask=with_mask))
    dataset = DATASETS.build(loader.dataset)
    print(table_of_objects(dataset))

    set_random_seed(args.seed)
    chosen = np.random.default_rng(args.seed).permutation(len(dataset))[: args.number]
    for index in sorted(chosen.tolist()):
        packed = dataset[index]
        sample = packed['data_samples']
        bgr = packed['inputs'].permute(1, 2, 0).numpy()
        image = np.ascontiguousarray(bgr[..., ::-1], dtype=np.uint8)  # float with to_float32=True
        image = draw_instances(image, sample.gt_instances, dataset.metainfo['classes'])
        path = Path(args.out_dir, f'{index:06d}_{Path(sample.img_path).stem}.jpg')
        write_image(path, image)
        height, width = packed['inputs'].shape[1:]
        print(f'{path}: {width} x {height} pixels, objects: {len(sample.gt_instances)}')
