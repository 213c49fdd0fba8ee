"""Every way to infer with one detector, ours and torchvision's, each as fast as its library can, or to train it:

    python benchmarks/inference.py [--model mask_rcnn] [--size 800 1216] [--clock cpu] [--sizes 10]
    python benchmarks/inference.py --job training

Among the ways to infer are the files that `mmdet export` writes, where onnxruntime and OpenVINO are installed.

All have the same weights and image (see detectors.py) and take turns in each round. Printed are medians, medians of the
ratios to the first way within a round, what the first call takes longer than a later one, and how many of the
detections of our plain float32 model are found again: same label, box within a pixel, score within 0.02. `--sizes N`
also times each way on N image sizes that it has not seen, one call each.
"""

import argparse
import copy
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))

import torch
from common import Clock, add_options, machine, parser_of, table
from detectors import MODELS, ROOT, build_sides
from mmengine.config import Config
from torch import nn

from mmdet.apis.export import ExportedDetector, export_detector
from mmdet.apis.export.formats import FORMATS
from mmdet.engine.amp import bfloat16_instructions
from mmdet.engine.compiled import compile_for_inference
from mmdet.layers import pack


def compiled_torchvision(net: nn.Module) -> nn.Module:
    """Its backbone and FPN; what follows has a shape for each image."""
    import torch._inductor.config as inductor

    inductor.freezing = True
    net.backbone.forward = torch.compile(net.backbone.forward, dynamic=True)
    return net


class Exported(nn.Module):
    """In a detector's place, the file that `mmdet export --dynamic` writes of it."""

    def __init__(self, net: nn.Module, format: str, options: dict | None = None):
        super().__init__()
        (net.final_test_cfg or {}).pop('min_bbox_size', None)  # graphs have none; torchvision's is 0.01 pixels
        with tempfile.TemporaryDirectory() as folder:
            path = (Path(folder) / 'net').with_suffix(FORMATS[format].suffix)
            export_detector(net, path, format, dynamic=True)
            self.detector = ExportedDetector(path)
            if options:
                import openvino

                options = dict(INFERENCE_NUM_THREADS=torch.get_num_threads(), **options)
                self.detector.run.model = openvino.Core().compile_model(path, 'CPU', options)

    def data_preprocessor(self, data: dict, training: bool) -> dict:
        return data  # the graph does it

    def forward(self, mode: str, **batch) -> list:
        return self.detector.test_step(batch)


# way: (whose, autocast, channels_last, what is done to the model)
WAYS = {
    'torchvision': ('torchvision', False, False, lambda net: net),
    'torchvision channels_last': ('torchvision', False, True, lambda net: net),
    'torchvision channels_last, backbone compiled': ('torchvision', False, True, compiled_torchvision),
    'torchvision autocast': ('torchvision', True, True, lambda net: net),
    'torchvision autocast, backbone compiled': ('torchvision', True, True, compiled_torchvision),
    'plain': ('ours', False, True, lambda net: net),
    'float32': ('ours', False, True, pack),
    'compile': ('ours', False, True, lambda net: compile_for_inference(pack(net))),
    'amp': ('ours', True, True, pack),
    'amp, compile': ('ours', True, True, lambda net: compile_for_inference(pack(net))),
    'onnxruntime': ('ours', False, False, lambda net: Exported(net, 'onnx')),
    'openvino': ('ours', False, False, lambda net: Exported(net, 'openvino')),
    'openvino bfloat16': (
        'ours', False, False, lambda net: Exported(net, 'openvino', dict(INFERENCE_PRECISION_HINT='bf16'))
    ),
}  # fmt: skip


def ways_at_hand(job: str) -> list[str]:
    """Those of this processor and of the libraries that are installed."""
    half, there = bfloat16_instructions(), importlib.util.find_spec
    ways = [way for way, (_, amp, *_) in WAYS.items() if half or not (amp or 'bfloat16' in way)]
    if job == 'training':
        return [way for way in ways if way in ('plain', 'amp') or 'torchvision' in way and 'compiled' not in way]
    runtimes = ('onnxruntime', 'openvino')
    missing = [name for name in runtimes if not all(map(there, ('onnx', 'onnxscript', name)))]
    return [way for way in ways if way.split()[0] not in missing]


def prepare(side, amp: bool, channels_last: bool, change: Callable):
    """A copy of one side of `detectors.build_sides`."""
    own = copy.copy(side)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    own.net = change(copy.deepcopy(side.net).to(memory_format=layout).eval())
    own.args = argparse.Namespace(**{**vars(side.args), 'amp': amp})
    trained = [p for p in own.net.parameters() if p.requires_grad]
    own.optimizer = torch.optim.SGD(trained, lr=0.0, momentum=0.9, weight_decay=1e-4) if trained else None
    return own


def arrays(side) -> tuple[torch.Tensor, ...]:
    """Boxes, scores and labels, as ours counts them, of the one image."""
    [found] = copy.deepcopy(side.run('inference'))
    if isinstance(found, dict):
        return found['boxes'], found['scores'], found['labels'] - 1
    return found.pred_instances.bboxes, found.pred_instances.scores, found.pred_instances.labels


def found_again(expected: tuple, got: tuple) -> float:
    near = (got[0][None] - expected[0][:, None]).abs().amax(-1) <= 1
    near &= (got[1][None] - expected[1][:, None]).abs() <= 0.02
    near &= got[2][None] == expected[2][:, None]
    return 100 * near.any(1).float().mean().item()


def set_image(side, image: torch.Tensor) -> None:
    if hasattr(side, 'images'):
        side.images = [image.flip(0).float() / 255]
    else:
        side.data = dict(copy.deepcopy(side.data), inputs=[image])
        side.data['data_samples'][0].set_metainfo(dict(img_shape=image.shape[-2:], ori_shape=image.shape[-2:]))


def main() -> None:
    parser = parser_of(__doc__)
    add_options(parser, repeats=7)
    parser.add_argument('--model', default='mask_rcnn', choices=list(MODELS))
    parser.add_argument('--size', type=int, nargs=2, default=(800, 1216), metavar=('H', 'W'))
    parser.add_argument('--job', default='inference', choices=['inference', 'training'])
    parser.add_argument('--images', type=int, default=1)
    parser.add_argument('--ways', nargs='+', choices=list(WAYS), help='default: all that this processor has')
    parser.add_argument('--sizes', type=int, default=0, metavar='N', help='further sizes of the image')
    args = parser.parse_args()
    args.objects, args.amp, args.channels_last = 10, False, False
    chosen, trains = args.ways or ways_at_hand(args.job), args.job == 'training'
    print(
        f'{machine(args)}, bfloat16: {bfloat16_instructions() or "no instructions, none measured"}; '
        f'{args.model}, {args.job}, {args.images} image(s) of {args.size[0]} x {args.size[1]}, '
        f'medians of {args.repeats} rounds'
    )
    sides = build_sides(args.model, 'whole', None, args)
    sides['ours'].net.cfg = Config.fromfile(ROOT / 'configs' / 'torchvision' / f'{MODELS[args.model][0]}.py')
    sides['ours'].net.dataset_meta = {}
    expected = None if trains else arrays(prepare(sides['ours'], *WAYS['plain'][1:]))
    ways, first = {}, {}
    for way in chosen:
        whose, *how = WAYS[way]
        ways[way] = prepare(sides[whose], *how)
        start = time.perf_counter()
        ways[way].run(args.job)
        first[way] = time.perf_counter() - start
    rounds = [{way: side.time(args.job) for way, side in ways.items()} for _ in range(args.repeats + 1)][1:]
    rows = []
    for way, side in ways.items():
        ms = statistics.median(row[way] for row in rounds)
        ratio = statistics.median(row[chosen[0]] / row[way] for row in rounds)
        longer = first[way] - ms / 1000 if args.clock == 'wall' else first[way]
        rows.append([way, f'{ms:.0f}', f'{ratio:.2f}', f'{longer:.1f}'])
        if not trains:
            rows[-1].append(f'{found_again(expected, arrays(side)):.0f}')
    columns = ['way', f'{args.clock} ms', f'{chosen[0]} / it', 'first call, s', 'found again, %']
    table(columns[: len(rows[0])], rows)
    if args.sizes and not trains:
        clock, images = Clock(args), sizes(args.sizes)
        rows = []
        for way, side in ways.items():
            spent = []
            for image in images:
                set_image(side, image)
                spent.append(clock.time(lambda: side.run('inference')))  # noqa: B023
            rows.append([way, f'{sum(spent):.0f}', f'{max(spent):.0f}'])
        table([f'{args.sizes} new sizes', f'sum, {args.clock} ms', 'slowest'], rows)


def sizes(count: int) -> list[torch.Tensor]:
    """Images between 480 x 640 and 800 x 1344, sides multiples of 32, upright or not."""
    generator = torch.Generator().manual_seed(0)
    images = []
    for index in range(count):
        short, long = (int(torch.randint(low, high, (), generator=generator)) for low, high in ((15, 26), (20, 43)))
        shape = (short * 32, long * 32) if index % 2 else (long * 32, short * 32)
        images.append(torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=generator))
    return images


if __name__ == '__main__':
    main()
