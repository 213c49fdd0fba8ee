"""Write a detector into one file for other runtimes: ONNX, OpenVINO, torch.export."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmdet.cli.parser import Parser
from mmdet.config.errors import UserError
from mmdet.config.output import check_writable

FORMATS = {'torch.export': '.pt2', 'onnx': '.onnx', 'openvino': '.xml'}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        'Write a detector into one file for other runtimes, from the resized image to boxes, scores, labels and masks. '
        'mmdet predict runs it.', [
            'my_config.py work_dirs/my_config/epoch_12.pth --format onnx --dynamic --images photos',
            'my_config.py checkpoint.pth --format openvino --size 800 1344',
            'checkpoint.pth --format torch.export --out detector.pt2',
        ])  # fmt: skip
    parser.add_config_arguments('model.test_cfg.rcnn.score_thr=0.3')
    parser.add_argument(
        'checkpoint', nargs='?', help='weights; left out where CONFIG is a checkpoint that holds its config'
    )
    parser.add_argument('--format', choices=FORMATS, default='onnx', help='default: %(default)s')
    parser.add_argument('--out', metavar='FILE', help="default: the checkpoint's name with the format's ending")
    parser.add_argument('--dynamic', action='store_true', help='images of any size (default: all are fitted into one)')
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help="of the image that the file takes (default: the scale of the config's Resize)",
    )
    parser.add_argument(
        '--images', nargs='+', metavar='FILE', help='image files or folders to compare the file with PyTorch on'
    )
    args = parser.parse_args(argv)
    if args.size and args.dynamic:
        raise UserError('--size and --dynamic exclude each other: of any size, or of one')
    if args.size and min(args.size) < 1:
        raise UserError(f'--size {" ".join(map(str, args.size))}: pixels are needed, at least 1')
    suffix = FORMATS[args.format]
    args.out = Path(args.out or Path(Path(args.checkpoint or args.config).name).with_suffix(suffix))
    if args.out.suffix != suffix:
        raise UserError(f'--out {args.out}: a file of the format {args.format} ends with {suffix}')
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)

    from mmdet.apis import init_detector
    from mmdet.apis.export import export_detector, formats
    from mmdet.apis.export.compare import BOX, SCORE, compare
    from mmdet.checkpoints import is_checkpoint
    from mmdet.cli.predict import find_inputs

    if args.checkpoint is None and not is_checkpoint(args.config):
        raise UserError(f'{args.config} alone has no weights: mmdet export CONFIG CHECKPOINT')
    formats.FORMATS[args.format].check_libraries()
    check_writable(str(args.out.parent), '--out')
    images, _ = find_inputs(args.images or [], args.out.parent)
    model = init_detector(args.config, args.checkpoint, device='cpu', cfg_options=args.cfg_options)
    print(f'{args.out}: this takes minutes', flush=True)
    meta = export_detector(model, args.out, args.format, args.size, args.dynamic)
    image, classes = meta['image'], len(meta.get('classes', ()))
    size = (
        f'{image["height"]} x {image["width"]}' if image['height'] else f'from {image["smallest_side"]} pixels a side'
    )
    mib = sum(path.stat().st_size for path in {args.out, args.out.with_suffix('.bin')} if path.exists()) / 2**20
    print(f'{args.out}: {mib:.1f} MiB, {classes} classes, images {size} ({image["type"]})')
    if images:
        difference = compare(model, init_detector(str(args.out), device='cpu'), images)
        print(f'Beside PyTorch: {difference}')
        if not difference.agree:
            raise UserError(
                f'{args.out} finds something else than PyTorch: {difference.alone} detections have no '
                f'counterpart within {BOX} pixels and {SCORE} of score'
            )
    print(f'Next: mmdet predict {args.out} photo.jpg')
