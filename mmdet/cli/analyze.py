"""Say what saved detections are worth, and why: a page, a JSON file and lines on the terminal."""

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from mmdet.cli.parser import Parser
from mmdet.config.errors import UserError


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser('Explain saved detections without running the model: report.html and analysis.json.')
    parser.add_config_arguments('test_evaluator.ann_file=mine.json')
    parser.add_argument('results', help='a .pkl of mmdet test --out, or a .json of COCO results')
    parser.add_argument('--eval', nargs='+', metavar='METRIC',
                        help='bbox, segm, proposal (default: those of the config that the results are enough for)')
    parser.add_argument('--images', type=int, default=6, help='how many of the worst images to draw, and half as many '
                        'of the best; 0 needs no image files (default: %(default)s)')
    parser.add_argument('--out-dir', default='analysis', help='folder of the report (default: %(default)s)')
    return parser.parse_args(argv)


def draw_analysis(evaluated, results: dict, analysis, images: int) -> dict[str, list]:
    """Ground truth and detections of each image that the analysis lists, and a crop of each label error."""
    drawings = {}
    for key in ('worst', 'best'):
        drawings[key] = [evaluated.columns(one.img_id, analysis.metric, {
            f'detections from score {analysis.threshold:.2f} on': (results[one.img_id], one.judged)})
            for one in getattr(analysis, key)]  # fmt: skip
    drawings['label_errors'] = [evaluated.crop(one.img_id, one.box, one.detected, one.score)
                                for one in analysis.label_errors[: 2 * images]]  # fmt: skip
    return drawings


def print_analysis(analysis) -> None:
    """What the page opens with."""
    name = 'AR@' if analysis.metric == 'proposal' else 'mAP'
    numbers = [f'{key.removeprefix("m").replace("_", "")} {100 * value:.1f}' for key, value in analysis.summary.items()
               if key.startswith(name) and value is not None]  # fmt: skip
    print(f'\n{analysis.metric}: {analysis.images} images, {analysis.objects} objects, {analysis.detections} '
          f'detections; {", ".join(numbers)}')
    for one in analysis.findings:
        cost = ' ' * 5 if one.cost is None else f'{100 * one.cost:5.1f}'
        print(f'  {cost}  {one.text}')
    if not analysis.findings:
        print('         nothing stands out')
    for note in analysis.notes:
        print(f'         ({note})')


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.images < 0:
        raise UserError(f'--images {args.images}: 0 or more images can be drawn')
    began = time.perf_counter()

    from mmdet.cli.evaluated import Evaluated
    from mmdet.config.output import check_writable, write_atomically
    from mmdet.evaluation.analysis import analyse
    from mmdet.visualization.report import analysis_page

    check_writable(args.out_dir, '--out-dir')
    evaluated = Evaluated(args.config, args.cfg_options, args.eval)
    results, metrics = evaluated.read(args.results)
    by_id = {result['img_id']: result for result in results}
    analyses, drawings = [], {}
    for name in metrics:
        analysis = analyse(evaluated.metric, name, results, (args.images, (args.images + 1) // 2))
        analyses.append(analysis)
        drawings[name] = draw_analysis(evaluated, by_id, analysis, args.images)
        print_analysis(analysis)
    report = dict(config=args.config, cfg_options=args.cfg_options, results=args.results,
                  analyses=[asdict(analysis) for analysis in analyses])
    folder = Path(args.out_dir)
    places = {key: os.path.abspath(report[key]) for key in ('config', 'results') if os.path.exists(report[key])}
    write_atomically(folder / 'analysis.json', json.dumps(report | places, indent=1).encode())  # `compare` reads it
    write_atomically(folder / 'report.html', analysis_page(report, drawings).encode())
    print(f'\n{folder / "report.html"}, {folder / "analysis.json"} ({time.perf_counter() - began:.1f} s)')


if __name__ == '__main__':
    from mmdet.config.errors import run_main

    run_main(main)
