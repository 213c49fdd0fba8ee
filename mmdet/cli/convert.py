"""Convert annotations of any tool to COCO's format."""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

from mmdet.cli.parser import Parser, text_table
from mmdet.config.errors import UserError, at_most

_FORMATS = ('coco', 'cvat', 'labelme', 'voc', 'yolo')


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        "Find annotations below a folder, and write them in COCO's format: train.json, val.json and, where the source "
        'has one, test.json. The images stay where they are.',
        ['photos', 'photos --format yolo --val 0.1 --out data/mine', 'VOCdevkit/VOC2007'],
    )
    parser.add_argument('source', metavar='SRC', help='folder with images and annotations, or a COCO file')
    parser.add_argument('--format', choices=('auto', *_FORMATS), default='auto', help='default: what is found')
    parser.add_argument('--val', type=float, metavar='FRACTION',
                        help="of the images for validation, every class in the same proportion (default: the source's "
                        'own split, 0.2 where it has none)')
    parser.add_argument('--out', metavar='FOLDER', help='default: data/NAME_OF_SRC')
    parser.add_argument('--seed', type=int, default=0, help='of the split (default: %(default)s)')
    return parser.parse_args(argv)


def find_format(source: Path, name: str) -> str:
    """The format of what lies below a folder.

    Raises:
        UserError: none that is known, or several.
    """
    from mmdet.datasets.formats import FORMATS

    if source.is_file() and source.suffix == '.json':
        return 'coco'
    if not source.is_dir():
        raise UserError(f'{source}: no such folder')
    if name != 'auto':
        return name
    found = [name for name, module in FORMATS.items() if module.recognises(source)]
    if not found:
        raise UserError(f'{source}: no annotations of {", ".join(_FORMATS)} found in it; if they are of one of these, '
                        'say which with --format')
    if len(found) > 1:
        raise UserError(f'{source} has annotations of {" and ".join(found)}; choose with --format')
    return found[0]


def choose_split(images: list, fraction: float | None, seed: int) -> str:
    """Give every image a split; says how."""
    from mmdet.datasets.formats import split

    known = {image.split for image in images}
    if fraction is None and 'train' in known and known & {'val', 'test'}:
        left = [image for image in images if image.split is None]
        images[:] = [image for image in images if image.split is not None]
        how = "the source's own split" + f'; {len(left)} images that it does not name are left out' * bool(left)
        if 'val' not in known:
            how += '; its test set is for validation'
            for image in images:
                image.split = 'val' if image.split == 'test' else image.split
        return how
    fraction = 0.2 if fraction is None else fraction
    split([image for image in images if image.split != 'test'], fraction, seed)
    return f'{fraction:.0%} for validation, every class in the same proportion (seed {seed})'


def table(parts: dict) -> str:
    """Objects and images of each class in each part."""
    rows = []
    for number, category in enumerate(next(iter(parts.values()))['categories'], 1):
        row = [category['name']]
        for content in parts.values():
            mine = [x['image_id'] for x in content['annotations'] if x['category_id'] == number]
            row += [len(mine), len(set(mine))]
        rows.append(row)
    total = ['all']
    for content in parts.values():
        total += [len(content['annotations']), len(content['images'])]
    head = ['class', *(f'{part} {what}' for part in parts for what in ('objects', 'images'))]
    return text_table([head, *rows, total], total=True)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    source = Path(args.source)
    if args.val is not None and not 0 < args.val < 1:
        raise UserError(f'--val {args.val}: a fraction between 0 and 1 is needed, such as 0.2')

    from mmdet.config.output import check_writable, write_atomically
    from mmdet.datasets.formats import FORMATS, Notes, coco_content

    kind, notes = find_format(source, args.format), Notes()
    name = source.stem if source.is_file() else Path(os.path.abspath(source)).name
    out = Path(args.out or Path('data', name))
    taken = [str(out / f'{part}.json') for part in ('train', 'val', 'test') if (out / f'{part}.json').exists()]
    if taken:
        raise UserError(f'{at_most(taken)} would be overwritten; choose another --out, or remove what is there')
    images = FORMATS[kind].read(source, notes)
    if not any(image.objects for image in images):
        raise UserError(f'{source}: no object found in {len(images)} images ({kind}). {"; ".join(notes)}')
    classes = sorted({x.name for image in images for x in image.objects}, key=lambda name: (name.lower(), name))
    for first, second in zip(classes, classes[1:]):
        if first.lower() == second.lower():
            notes.add('class names that differ in their letters\' case alone: two classes', f'{first}, {second}')
    how = choose_split(images, args.val, args.seed)

    check_writable(str(out), '--out')
    for image in images:
        if image.content is not None:
            image.path = out / 'images' / image.path.name
            write_atomically(image.path, image.content)
    parts = {part: [image for image in images if image.split == part] for part in ('train', 'val', 'test')}
    parts = {part: coco_content(mine, classes, out, notes) for part, mine in parts.items() if mine}
    for part, content in parts.items():
        write_atomically(out / f'{part}.json', json.dumps(content).encode())
    print(f'{source}: {kind}; {how}')
    print(table(parts))
    masks = sum('segmentation' in x for content in parts.values() for x in content['annotations'])
    empty = sum(not image.objects for image in images)
    print(f'{masks} objects have a mask; {empty} images have no object')
    for note in notes:
        print(f'  {note}')
    print(f'wrote {", ".join(str(out / f"{part}.json") for part in parts)}. Next: mmdet init {out}')
