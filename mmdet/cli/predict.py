"""Detect in images of your own."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mmdet.cli.parser import Parser
from mmdet.config.errors import UserError, at_most, one_line
from mmdet.config.output import IMAGE_SUFFIXES, check_writable, output_files


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("Detect in images: draw what is found, and write it in COCO's layout.")
    parser.add_config_arguments('model.test_cfg.rcnn.max_per_img=50')
    parser.add_argument('checkpoint', help='weights')
    parser.add_argument('images', nargs='+', help='image files, or folders to search for them')
    parser.add_argument('--out-dir', default='predictions', help='folder of the results (default: %(default)s)')
    parser.add_argument('--score-thr', type=float, default=0.3,
                        help='minimum score to draw and to write (default: %(default)s)')
    parser.add_argument('--device', help='cpu or cuda:0 (default: a GPU where there is one)')
    parser.add_argument('--amp', action='store_true',
                        help='mixed precision: float16 on GPU, bfloat16 on a CPU that has instructions for it')
    parser.add_argument('--compile', action='store_true', help='torch.compile: a slow first image, then faster ones')
    return parser.parse_args(argv)


def find_images(given: list[str], out_dir: Path) -> dict[Path, Path]:
    """Where each image's drawing goes, see `output_files`.

    Raises:
        UserError: no such file, no image in a folder, or an image would be overwritten.
    """
    images: dict[Path, None] = {}
    for name in given:
        path = Path(name)
        if not path.exists():
            raise UserError(f'{path}: no such file or folder')
        found, earlier = [path], {out_dir} - {path, *path.parents}  # drawings of an earlier call
        if path.is_dir():
            found = sorted(
                p for p in path.rglob('*') if p.suffix.lower() in IMAGE_SUFFIXES and not earlier & {*p.parents}
            )
            if not found:
                raise UserError(f'{path}: no image in this folder ({", ".join(sorted(IMAGE_SUFFIXES))})')
        images.update(dict.fromkeys(found))
    return dict(zip(images, output_files(images, out_dir)))


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    out_dir = Path(args.out_dir)
    places = find_images(args.images, out_dir)

    import torch

    from mmdet.apis import inference_detector, init_detector
    from mmdet.visualization.visualizer import class_name, draw_file

    check_writable(args.out_dir, '--out-dir')
    device = args.device or ('cuda:0' if torch.cuda.is_available() else 'cpu')
    model = init_detector(args.config, args.checkpoint, device, args.cfg_options, args.amp, args.compile)
    classes = tuple(model.dataset_meta.get('classes') or ())
    coco = dict(images=[], annotations=[], categories=[dict(id=i, name=name) for i, name in enumerate(classes, 1)])
    unread = []
    for number, (image, place) in enumerate(places.items(), 1):
        try:
            sample = inference_detector(model, image)
        except (UserError, OSError) as error:
            unread.append(str(image))
            print(f'left out: {one_line(error)}', file=sys.stderr)
            continue
        found = sample.pred_instances
        sample.pred_instances = found = found[found.scores >= args.score_thr]
        draw_file(image, sample, place, classes, args.score_thr)
        height, width = sample.ori_shape
        coco['images'].append(dict(id=number, file_name=str(image), height=height, width=width))
        for i, ((x1, y1, x2, y2), score, label) in enumerate(
            zip(found.bboxes.tolist(), found.scores.tolist(), found.labels.tolist())
        ):
            entry = dict(id=len(coco['annotations']) + 1, image_id=number, category_id=label + 1, score=score,
                         bbox=[x1, y1, x2 - x1, y2 - y1], area=(x2 - x1) * (y2 - y1), iscrowd=0)  # fmt: skip
            if 'masks' in found:
                rle = found.masks[i]
                entry['segmentation'] = dict(size=list(rle['size']), counts=rle['counts'].decode())
            coco['annotations'].append(entry)
        counts = Counter(class_name(label, classes) for label in found.labels.tolist())
        summary = ', '.join(f'{count} {name}' for name, count in counts.most_common()) or 'nothing'
        print(f'{place}: {summary}')
    (out_dir / 'predictions.json').write_text(json.dumps(coco))
    print(f'{out_dir / "predictions.json"}: {len(coco["annotations"])} detections in {len(coco["images"])} images')
    if unread:
        raise UserError(f'{len(unread)} of {len(places)} files are not readable images: {at_most(unread, 3)}')
