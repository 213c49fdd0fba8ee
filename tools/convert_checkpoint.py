"""Convert a checkpoint of another project: python tools/convert_checkpoint.py IN OUT [--to mmdet3|torchvision]"""

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mmdet.cli.parser import Parser
from mmdet.config.errors import UserError, run_main


def parse_args() -> argparse.Namespace:
    parser = Parser(
        'Recognise a checkpoint (mmdetection 0.x to 3.x, torchvision, detectron2) and write its weights under other '
        'names.'
    )
    parser.add_argument('input', metavar='IN')
    parser.add_argument('output', metavar='OUT')
    parser.add_argument(
        '--to',
        choices=('mmdet3', 'torchvision', 'torchvision-backbone'),
        default='mmdet3',
        help="mmdet3: this toolbox's names (default); torchvision: its detectors; torchvision-backbone: a ResNet",
    )
    parser.add_argument(
        '--num-classes', type=int, choices=(80, 90), help="90 keeps all of torchvision's 91 outputs for COCO"
    )
    parser.add_argument(
        '--trust',
        action='store_true',
        help='run the code that IN holds, to get at its weights. Only in a sandbox: a container without network '
        'and without your files',
    )
    parser.add_argument('--keys', action='store_true', help='list every renamed key')
    return parser.parse_args()


def pattern(key: str) -> str:
    """A key without its numbers and its parameter's name."""
    return re.sub(r'\d+', '#', key.rpartition('.')[0])


def main() -> None:
    args = parse_args()
    from mmdet.checkpoints import convert, needs_legacy_options, to_torchvision
    from mmdet.checkpoints.plain import marked, plain_meta, to_bytes
    from mmdet.checkpoints.reading import WEIGHTS_KEYS, read_checkpoint, read_trusted
    from mmdet.config.output import check_writable, write_atomically

    if Path(args.output).exists():
        raise UserError(f'{args.output} exists; remove it or choose another name')
    checkpoint = (read_trusted if args.trust else read_checkpoint)(args.input)
    try:
        converted = convert(checkpoint, args.num_classes)
    except UserError as error:
        raise UserError(f'{args.input}: {error}') from error
    state = converted.state_dict
    if args.num_classes and not converted.source.startswith('torchvision'):
        raise UserError(f"--num-classes is about torchvision's 91 outputs; {args.input} is {converted.source}")
    if args.to == 'torchvision' and all(key.startswith('backbone.') for key in state):
        raise UserError(f'{args.input} holds a backbone alone ({converted.source}); use --to torchvision-backbone')
    print(f'recognised: {converted.source}, {len(state)} arrays, by {converted.evidence}')
    pairs = converted.changed.items()
    for old, new in pairs if args.keys else dict.fromkeys((pattern(old), pattern(new)) for old, new in pairs):
        print(f'  {old} -> {new}')
    if pairs:
        print(f'  {len(pairs)} keys renamed' + ('' if args.keys else ' (--keys lists them)'))
    for key in converted.reordered:
        print(f'  rows or scale changed: {key}')
    for key, reason in converted.dropped.items():
        print(f'  dropped: {key} ({reason})')
    meta = plain_meta(checkpoint.meta)
    legacy = needs_legacy_options(checkpoint)
    left = sorted(set(checkpoint) - {*WEIGHTS_KEYS, 'meta'})
    if left and not checkpoint.keys().isdisjoint(WEIGHTS_KEYS):
        print(f'  dropped: {", ".join(left)} (not weights)')
    if legacy:
        meta['conventions'] = 'mmdet1'
        print('  its conventions (x2 - x1 + 1, rounded anchors, ...) are noted in the file: testing applies them')
    if args.to == 'mmdet3':
        result = dict(meta=marked(dict(meta, converted_from=converted.source)), state_dict=state)
    elif legacy:
        raise UserError(f'{args.input} follows the conventions of mmdetection 0.x / 1.x, which torchvision lacks')
    elif args.to == 'torchvision':
        result = to_torchvision(state)
    else:
        result = {key.removeprefix('backbone.'): value for key, value in state.items() if key.startswith('backbone.')}
        if len(result) < len(state):
            print(f'  dropped: {len(state) - len(result)} arrays beside the backbone')
    check_writable(Path(args.output).parent, 'OUT')
    write_atomically(args.output, to_bytes(result))
    print(f'wrote {args.output}')


if __name__ == '__main__':
    run_main(main)
