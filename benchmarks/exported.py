"""A detector beside the files that `mmdet export` makes of it, on photographs, from the image file to masks:

    python benchmarks/exported.py CONFIG CHECKPOINT --images FILE_OR_FOLDER ... [--threads 2] [--clock cpu]

The files take images of any size. All ways take turns in each round; printed are medians for one image, and how far
what is found lies apart.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))

from common import Clock, add_options, machine, parser_of, table

from mmdet.apis import inference_detector, init_detector
from mmdet.apis.export import export_detector
from mmdet.apis.export.compare import compare
from mmdet.apis.export.formats import FORMATS
from mmdet.apis.images import expand


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('--images', nargs='+', required=True)
    parser.add_argument('--formats', nargs='+', default=list(FORMATS), choices=list(FORMATS))
    add_options(parser, repeats=5)
    args = parser.parse_args()
    clock, (images, _) = Clock(args), expand(args.images)
    model = init_detector(args.config, args.checkpoint, device='cpu')
    ways = dict(eager=model)
    with tempfile.TemporaryDirectory() as folder:
        for name in args.formats:
            path = Path(folder, f'detector{FORMATS[name].suffix}')
            export_detector(model, path, name, dynamic=True)
            ways[name] = init_detector(str(path), device='cpu')
        jobs = {name: lambda way=way: inference_detector(way, images) for name, way in ways.items()}
        times = clock.medians(jobs, args.repeats)
        print(f'{machine(args)}, {len(images)} images')
        table(['way', 'ms an image', 'beside eager'], [
            [name, f'{spent / len(images):.0f}', '' if name == 'eager' else compare(model, ways[name], images)]
            for name, spent in times.items()])  # fmt: skip


if __name__ == '__main__':
    main()
