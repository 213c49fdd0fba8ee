"""Look at every image and annotation once, and say what is wrong."""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmdet.cli.parser import EXIT_STATUSES, Parser, text_table
from mmdet.config.errors import UserError, say
from mmdet.engine.launch import cpu_count

UNSOUND = 3  # exit status


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        'Check the data of a config, or of a folder with COCO files: images that are missing, damaged or of another '
        'size; invalid boxes and masks; the same image in two sets; classes and objects that cannot be learned.',
        ['my_config.py', 'data/photos --json report.json --examples 10'],
        EXIT_STATUSES.replace('0 done;', f'0 sound, remarks at most; {UNSOUND} something is refused or wrong;'),
    )
    parser.add_argument('source', metavar='CONFIG|FOLDER', help='a config, or a folder with train.json and val.json')
    parser.add_argument('--cfg-options', **parser.config_options('data.root=data/mine'))
    parser.add_argument('--json', metavar='FILE', help='write all findings')
    parser.add_argument('--examples', type=int, default=3, metavar='N',
                        help='images to draw of each kind of finding (default: %(default)s)')
    parser.add_argument('--out-dir', default='check', help='folder of the drawings (default: %(default)s)')
    parser.add_argument('--processes', type=int, default=cpu_count(), help='default: one per CPU core (%(default)s)')
    return parser.parse_args(argv)


def sets_of_config(path: str, options: dict) -> list:
    """The data sets of a config, each once."""
    from mmdet.config.load import check_types, load_config
    from mmdet.config.values import names_a
    from mmdet.datasets import CocoDataset, LoadImageFromFile, Resize
    from mmdet.datasets.health import DataSet

    cfg = load_config(path, options)
    check_types(cfg)
    found, places = [], set()
    scale = None
    for name in ('train', 'val', 'test'):
        for dataset in _innermost((cfg.get(f'{name}_dataloader') or {}).get('dataset')):
            if not names_a(dataset, CocoDataset):
                say(f'{name}_dataloader: {dataset.get("type")} is not checked, it is not in COCO\'s format')
                continue
            root = dataset.get('data_root') or ''
            ann_file = os.path.join(root, dataset.ann_file)
            images = os.path.join(root, (dataset.get('data_prefix') or {}).get('img', ''))
            if (ann_file, images) in places:
                continue
            places.add((ann_file, images))
            steps = dataset.get('pipeline') or ()
            load = next((dict(step) for step in steps if names_a(step, LoadImageFromFile)), {})
            load.pop('type', None)
            resize = next((step for step in steps if names_a(step, Resize)), {})
            scale = resize.get('scale') or scale
            classes = (dataset.get('metainfo') or {}).get('classes') or CocoDataset.METAINFO['classes']
            found.append(DataSet(name, ann_file, images, tuple(classes), scale, load))
    if not found:
        raise UserError(f'{path} has no data set in COCO\'s format to check')
    return found


def _innermost(dataset: dict | None) -> Iterator[dict]:
    if dataset is None:
        return
    for part in dataset.get('datasets') or [dataset.get('dataset')]:
        yield from [dataset] if part is None else _innermost(part)


def sets_of_folder(folder: Path) -> list:
    from mmdet.datasets.formats.coco import find_splits, image_folder
    from mmdet.datasets.health import DataSet

    return [DataSet(name, str(path), str(folder / image_folder(path, folder)))
            for name, path in find_splits(folder).items()]


def table(report) -> str:
    rows = [[name, level, len(found), kind, _short(found[0].place)] for name, level, kind, found in report.kinds()]
    return text_table([['set', '', 'count', 'what', 'first'], *rows], right=[2])


def _short(text: str) -> str:
    return text if len(text) <= 70 else f'...{text[-67:]}'


def draw_examples(report, number: int, folder: Path) -> int:
    """Draw up to `number` images of each kind of finding that has a box; returns how many were drawn."""
    from mmengine.structures import InstanceData

    from mmdet.visualization.visualizer import draw_instances, read_image, write_image

    drawn = 0
    for name, _, kind, found in report.kinds():
        chosen: dict[str, list] = {}
        for finding in found:
            if finding.image and finding.box and (finding.image in chosen or len(chosen) < number):
                chosen.setdefault(finding.image, []).append(finding)
        for image, odd in chosen.items():
            classes = tuple(dict.fromkeys(finding.label for finding in odd))
            labels = [classes.index(finding.label) for finding in odd]
            instances = InstanceData(bboxes=[finding.box for finding in odd], labels=labels)
            try:
                drawing = draw_instances(read_image(image), instances, classes)
            except (UserError, OSError):
                continue
            words = ''.join(c if c.isalnum() else '_' for c in kind)
            write_image(folder / name / words / f'{Path(image).stem}.jpg', drawing)
            drawn += 1
    return drawn


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)

    from mmdet.config.output import check_writable, write_atomically
    from mmdet.datasets.health import check_sets

    folder = Path(args.source)
    sets = sets_of_folder(folder) if folder.is_dir() else sets_of_config(args.source, args.cfg_options)
    report = check_sets(sets, args.processes, _progress)
    for name, facts in report.sets.items():
        print(f'{name}: {facts["images"]} images, {facts["objects"]} objects, {len(facts["classes"])} classes '
              f'({facts["ann_file"]})')
    print(table(report) if report.kinds() else 'Nothing to remark.')
    if args.json:
        findings = {name: [dataclasses.asdict(x) for x in found] for name, found in report.findings.items()}
        check_writable(str(Path(args.json).parent), '--json')
        write_atomically(args.json, json.dumps(dict(sound=report.sound, sets=report.sets, findings=findings)).encode())
    drawn = draw_examples(report, args.examples, Path(args.out_dir)) if args.examples > 0 else 0
    if drawn:
        print(f'{drawn} drawings in {args.out_dir}')
    if not report.sound:
        print("'refused' stops training or evaluation; 'wrong' data is trained on, or left out")
        sys.exit(UNSOUND)
    print('Sound.')


def _progress(images: Iterator) -> Iterator:
    """The same, with a line that counts on a terminal."""
    for number, item in enumerate(images, 1):
        if sys.stderr.isatty() and number % 50 == 0:
            print(f'\r{number} images', end='\r', file=sys.stderr, flush=True)
        yield item
