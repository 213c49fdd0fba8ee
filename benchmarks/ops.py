"""Compiled ops beside torchvision (and pycocotools), in one process, interleaved, medians.

    python benchmarks/ops.py [--device cpu|cuda] [--filter TEXT] [--repeats N] [--json FILE] [--quick]
    python benchmarks/ops.py --threads 1 --clock cpu        processor time, for a machine that others use too

Boxes have centres anywhere in an 800 x 1216 image and sides of 16 to 500 pixels, uniform in the logarithm.
"""

import json
from pathlib import Path

import numpy as np
import torch
import torchvision
from common import Clock, add_options, machine, parser_of

from mmdet import ops
from mmdet.ops.roi_align import map_levels

HEIGHT, WIDTH = 800, 1216


def random_boxes(count: int, device: str) -> torch.Tensor:
    sides = torch.empty(count, 2).uniform_(2.77, 6.21).exp()
    centres = torch.rand(count, 2) * torch.tensor([WIDTH, HEIGHT])
    boxes = torch.cat([centres - sides / 2, centres + sides / 2], 1)
    boxes[:, 0::2].clamp_(0, WIDTH)
    boxes[:, 1::2].clamp_(0, HEIGHT)
    return boxes.to(device)


def random_rois(count: int, device: str) -> torch.Tensor:
    return torch.cat([torch.zeros(count, 1, device=device), random_boxes(count, device)], 1)


def looped_roi_align(features, rois, size, scales, sampling_ratio):
    """RoIAlign of a pyramid as torchvision and mmdet do it: one call and one nonzero per level."""
    levels = map_levels(rois, len(features), 56.0)
    output = features[0].new_zeros(len(rois), features[0].shape[1], size, size)
    for level, (feature, scale) in enumerate(zip(features, scales)):
        inds = (levels == level).nonzero().squeeze(1)
        output[inds] = torchvision.ops.roi_align(feature, rois[inds], size, scale, sampling_ratio, True)
    return output


def with_backward(function, features, gradient):
    """The function's forward and backward over fresh leaves."""
    def run():
        leaves = [f.detach().requires_grad_() for f in features]
        return torch.autograd.grad(function(leaves), leaves, gradient)
    return run


def roi_align_cases(device: str, quick: bool):
    feature = torch.randn(1, 256, HEIGHT // 4, WIDTH // 4, device=device)
    formats = {'contiguous': torch.contiguous_format, 'channels_last': torch.channels_last}
    for name, memory_format in formats.items():
        given = feature.contiguous(memory_format=memory_format)
        for count in (512,) if quick else (512, 2000):
            rois = random_rois(count, device)
            for size in (7, 14):
                for sampling in (0, 2):
                    def ours(leaves, rois=rois, size=size, sampling=sampling):
                        return ops.roi_align(leaves[0], rois, size, 0.25, sampling, True)

                    def theirs(leaves, rois=rois, size=size, sampling=sampling):
                        return torchvision.ops.roi_align(leaves[0], rois, size, 0.25, sampling, True)

                    label = f'{name} {count} RoIs {size}x{size} sampling {sampling}'
                    gradient = torch.randn(count, 256, size, size, device=device)
                    yield (f'roi_align forward {label}', lambda f=ours, x=given: f([x]),
                           lambda f=theirs, x=given: f([x]))
                    yield (f'roi_align forward+backward {label}', with_backward(ours, [given], gradient),
                           with_backward(theirs, [given], gradient))


def multiscale_cases(device: str, quick: bool):
    scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    pyramid = [torch.randn(1, 256, int(HEIGHT * s), int(WIDTH * s), device=device) for s in scales]
    for count, size in ((512, 7), (128, 14)) if quick else ((512, 7), (2000, 7), (512, 14), (128, 14)):
        rois = random_rois(count, device)
        gradient = torch.randn(count, 256, size, size, device=device)

        def ours(leaves, rois=rois, size=size):
            return ops.multiscale_roi_align(leaves, rois, size, scales)

        def theirs(leaves, rois=rois, size=size):
            return looped_roi_align(leaves, rois, size, scales, 0)

        yield f'multiscale forward {count} RoIs {size}x{size}', lambda f=ours: f(pyramid), lambda f=theirs: f(pyramid)
        yield (f'multiscale forward+backward {count} RoIs {size}x{size}', with_backward(ours, pyramid, gradient),
               with_backward(theirs, pyramid, gradient))


def nms_cases(device: str, quick: bool):
    for count in (5000,) if quick else (1000, 5000, 20000):
        boxes, scores = random_boxes(count, device), torch.rand(count, device=device)
        for threshold in (0.5, 0.7):
            yield (f'nms {count} boxes IoU {threshold}', lambda b=boxes, s=scores, t=threshold: ops.nms(b, s, t),
                   lambda b=boxes, s=scores, t=threshold: torchvision.ops.nms(b, s, t))
        classes = torch.randint(0, 80, (count,), device=device)
        yield (f'batched_nms {count} boxes 80 classes',
               lambda b=boxes, s=scores, c=classes: ops.batched_nms(b, s, c, 0.5),
               lambda b=boxes, s=scores, c=classes: torchvision.ops.batched_nms(b, s, c, 0.5))
    boxes, scores = random_boxes(5000, device), torch.rand(5000, device=device)
    levels = torch.arange(5, device=device).repeat_interleave(1000)
    yield ('batched_nms 5 x 1000 proposals', lambda: ops.batched_nms(boxes, scores, levels, 0.7),
           lambda: torchvision.ops.batched_nms(boxes, scores, levels, 0.7))


def mask_cases(device: str, quick: bool):
    from pycocotools import mask as coco_mask

    boxes = random_boxes(100, device)
    rough = torch.rand(100, 1, 7, 7, device=device)
    masks = torch.nn.functional.interpolate(rough, (28, 28), mode='bicubic').clamp(0, 1)[:, 0]

    def fast_paste():
        pasted = ops.paste_masks(masks, boxes, (HEIGHT, WIDTH)).cpu().numpy().view('uint8')
        return [coco_mask.encode(np.asfortranarray(m)) for m in pasted]

    def theirs():
        pasted = ops.masks._plain_paste(masks, boxes, HEIGHT, WIDTH, 0.5).cpu().numpy().view('uint8')
        return [coco_mask.encode(np.asfortranarray(m)) for m in pasted]

    yield ('masks_to_rle 100 masks / grid_sample paste + encode',
           lambda: ops.masks_to_rle(masks, boxes, (HEIGHT, WIDTH)), theirs)
    yield ('masks_to_rle 100 masks / our paste + encode',
           lambda: ops.masks_to_rle(masks, boxes, (HEIGHT, WIDTH)), fast_paste)
    yield ('paste_masks 100 masks / grid_sample', lambda: ops.paste_masks(masks, boxes, (HEIGHT, WIDTH)),
           lambda: ops.masks._plain_paste(masks, boxes, HEIGHT, WIDTH, 0.5))


def main() -> None:
    parser = parser_of(__doc__)
    add_options(parser, repeats=None)
    parser.add_argument('--filter', default='', help='only cases whose name contains this')
    parser.add_argument('--json', help='also write the figures to this file')
    parser.add_argument('--quick', action='store_true', help='fewer sizes')
    args = parser.parse_args()
    if not ops.COMPILED:
        parser.error('the compiled ops are missing: python setup.py build_ext --inplace')
    repeats = args.repeats or (50 if args.device == 'cuda' else 5)
    torch.manual_seed(0)
    clock, warm_up = Clock(args), 3 if args.device == 'cuda' else 1
    print(f'{machine(args)}, torchvision {torchvision.__version__}\n{ops.describe()}\n')
    print(f'| case | mmdet.ops {args.clock} ms | peer {args.clock} ms | ratio |\n|---|---|---|---|')
    rows = []
    for cases in (roi_align_cases, multiscale_cases, nms_cases, mask_cases):
        for name, ours, theirs in cases(args.device, args.quick):
            if args.filter not in name:
                continue
            mine, peer = clock.medians(dict(ours=ours, theirs=theirs), repeats, warm_up=warm_up).values()
            rows.append(dict(case=name, mmdet_ms=mine, peer_ms=peer, ratio=peer / mine))
            print(f'| {name} | {mine:.2f} | {peer:.2f} | {peer / mine:.1f} |', flush=True)
    if args.json:
        given = {key: vars(args)[key] for key in ('device', 'threads', 'clock')}
        versions = dict(torch=torch.__version__, torchvision=torchvision.__version__, build=ops.BUILD)
        Path(args.json).write_text(json.dumps(dict(versions, **given, rows=rows), indent=1))


if __name__ == '__main__':
    main()
