"""Compare two models' saved detections on the same images."""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from mmdet.cli.parser import Parser
from mmdet.config.errors import UserError


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser('Compare two sets of saved detections: comparison.html and comparison.json.')
    parser.add_argument('a', help='detections: a .pkl of mmdet test --out, a .json of COCO results, or an '
                        'analysis.json that `analyze` wrote of them')
    parser.add_argument('b', help='the same, of the other model')
    parser.add_argument('--config', help='config whose test set it is (default: that of an analysis.json)')
    parser.add_argument('--cfg-options', **parser.config_options('test_evaluator.ann_file=mine.json'))
    parser.add_argument('--eval', nargs='+', metavar='METRIC', help="bbox, segm (default: the config's)")
    parser.add_argument('--samples', type=int, default=200,
                        help='draws of the bootstrap that the intervals come from (default: %(default)s)')
    parser.add_argument('--images', type=int, default=4,
                        help='how many images that became worse, and better, to draw (default: %(default)s)')
    parser.add_argument('--out-dir', default='comparison', help='folder of the report (default: %(default)s)')
    return parser.parse_args(argv)


def analysed(path: str) -> dict | None:
    """What `analyze` wrote, if it wrote this file."""
    if not path.endswith('.json') or not Path(path).is_file():
        return None
    try:
        content = json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise UserError(f'{path}: not JSON: {error}') from error
    return content if isinstance(content, dict) and 'analyses' in content else None


def print_comparison(comparison) -> None:
    print(f'\n{comparison.metric}: {comparison.verdict}')
    width = max(len(one.name) for one in [*comparison.overall, *comparison.classes])
    for one in [*comparison.overall, *(comparison.classes if len(comparison.classes) > 1 else ())]:
        star = ' *' if one.clear else ''
        print(f'  {one.name.removeprefix("m").replace("_", ""):{width}} {100 * one.a:6.1f} {100 * one.b:6.1f} '
              f'{100 * (one.b - one.a):+6.1f}  [{100 * one.least:+.1f}, {100 * one.most:+.1f}]{star}')
    changed = [str(one.img_id) for one in [*comparison.worse, *comparison.better]]
    if changed:
        print(f'  images that changed most: {", ".join(changed)}')


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.samples < 20:
        raise UserError(f'--samples {args.samples}: an interval needs 20 or more')
    if args.images < 0:
        raise UserError(f'--images {args.images}: 0 or more images can be drawn')
    began = time.perf_counter()
    reports = [analysed(path) for path in (args.a, args.b)]
    files = [report['results'] if report else path for report, path in zip(reports, (args.a, args.b))]
    configs = {(report['config'], str(report['cfg_options'])): report for report in reports if report}
    if not args.config and len(configs) != 1:
        raise UserError('the two analysis.json name different configs; choose one: --config CONFIG' if configs else
                        'the ground truth is needed: --config CONFIG, whose test set the detections are of')
    first = next(iter(configs.values()), dict(cfg_options={}))
    config, options = args.config or first['config'], args.cfg_options or first['cfg_options']

    from mmdet.cli.evaluated import Evaluated
    from mmdet.config.output import check_writable, write_atomically
    from mmdet.evaluation.comparison import compare
    from mmdet.visualization.report import comparison_page

    check_writable(args.out_dir, '--out-dir')
    evaluated = Evaluated(config, options, args.eval)
    (a, _), (b, metrics) = (evaluated.read(path) for path in files)
    of_a, of_b = ({result['img_id']: result for result in results} for results in (a, b))
    comparisons, drawings = [], {}
    for name in metrics:
        one = compare(evaluated.metric, name, a, b, args.samples, args.images)
        comparisons.append(one)
        print_comparison(one)
        drawings[name] = {key: [evaluated.columns(image.img_id, name, {
            'A': (of_a[image.img_id], image.a), 'B': (of_b[image.img_id], image.b)})
            for image in getattr(one, key)] for key in ('worse', 'better')}  # fmt: skip
    report = dict(config=config, cfg_options=options, a=files[0], b=files[1],
                  comparisons=[asdict(one) for one in comparisons])
    folder = Path(args.out_dir)
    write_atomically(folder / 'comparison.json', json.dumps(report, indent=1).encode())
    write_atomically(folder / 'comparison.html', comparison_page(report, drawings).encode())
    print(f'\n{folder / "comparison.html"}, {folder / "comparison.json"} ({time.perf_counter() - began:.1f} s)')


if __name__ == '__main__':
    from mmdet.config.errors import run_main

    run_main(main)
