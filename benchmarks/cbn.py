"""What a norm costs: convolution + norm, forward + backward, and a whole Mask R-CNN training step.

    python benchmarks/cbn.py layers [--device cpu] [--dtype float32] [--repeat 9] [--shapes fpn mask-head]
    python benchmarks/cbn.py model [--size 320 480] [--batch 1] [--repeat 5]
    --threads 1 --clock cpu    on a machine that others use too: CPU time of one thread instead of wall time

Norms take turns within each round, and the table gives medians over the rounds as ratios to BN, so that a slow
moment of the machine hits all alike. CBN's history is full. ``CBN exact / floor`` divides by the time of
convolution + BN plus one weight gradient of the same convolution, measured in the same rounds: no exact CBN can
do with less. On a GPU ten steps follow each other without a wait, as they do in training; a second table has single
steps, from one wait to the next, which show the host's time too, and the kernels that each starts.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')  # spinning threads make a shared machine's times random
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

SHAPES = {
    'fpn': (2, 256, 100, 152),
    'box-head': (1024, 256, 7, 7),
    'mask-head': (256, 256, 14, 14),
}
NORMS = {
    'BN': dict(type='BN'),
    'SyncBN': dict(type='SyncBN'),
    'GN': dict(type='GN', num_groups=32),
    'CBN autograd': dict(type='CBN', buffer_num=3),
    'CBN exact': dict(type='CBN', buffer_num=3),
    'CBN 1/4': dict(type='CBN', buffer_num=3, derivative_fraction=1 / 4),
    'CBN 1/16': dict(type='CBN', buffer_num=3, derivative_fraction=1 / 16),
}


def medians(jobs: dict, args, at_once: int = 1) -> dict[str, float]:
    """Median time in ms of each job, the jobs taking turns; the first round does not count."""
    clock = time.process_time if args.clock == 'cpu' else time.perf_counter
    wait = torch.cuda.synchronize if args.device == 'cuda' else lambda: None
    times = {name: [] for name in jobs}
    for _ in range(args.repeat + 1):
        for name, fn in jobs.items():
            wait()
            start = clock()
            for _ in range(at_once):
                fn()
            wait()
            times[name].append((clock() - start) * 1e3 / at_once)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def layer_jobs(shape, kernel: int, device: str, dtype: torch.dtype) -> tuple[dict, dict]:
    from mmdet.layers import ConvModule, CrossIterBatchNorm2d

    channels = shape[1]
    x = torch.randn(shape, device=device, requires_grad=True)
    blocks, jobs = {}, {}
    with torch.no_grad():
        grad = torch.randn_like(x)
    for name, cfg in NORMS.items():
        block = ConvModule(channels, channels, kernel, padding=kernel // 2, norm_cfg=cfg, act_cfg=None)
        blocks[name] = block.to(device).train()

        def step(block=block, through_autograd=name == 'CBN autograd'):
            with torch.autocast(device, dtype, enabled=dtype != torch.float32):
                if through_autograd:
                    out = block.bn(block.conv(x), block.conv.weight)
                else:
                    out = block(x)
            out.backward(grad.to(out.dtype))
            x.grad = None
            block.zero_grad()

        jobs[name] = step
    conv = blocks['BN'].conv
    half, half_grad = x.detach().to(dtype), grad.to(dtype)
    weight = conv.weight.detach().to(dtype)

    def weight_gradient():
        torch.ops.aten.convolution_backward(
            half_grad, half, weight, None, [1, 1], [kernel // 2] * 2, [1, 1], False, [0, 0], 1, [False, True, False]
        )

    jobs['weight gradient'] = weight_gradient
    for block in blocks.values():  # fill the histories
        for _ in range(4):
            small = torch.randn(64, channels, 8, 8, device=device)
            if block is blocks['CBN autograd']:
                block.bn(block.conv(small), block.conv.weight)
            else:
                block(small)
    held = {
        name: sum(t.numel() * t.element_size() for t in vars(block.bn.history).values() if torch.is_tensor(t))
        / (conv.weight.numel() * 4)
        for name, block in blocks.items()
        if isinstance(block.bn if hasattr(block, 'bn') else None, CrossIterBatchNorm2d)
    }
    return jobs, held


def peak_memory(fn) -> float:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    fn()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**20


def launches(fn) -> int:
    """Kernels, copies and fills that one call starts on the GPU."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        fn()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in trace.events())


def table(head: list[str], rows: list[list[str]]) -> None:
    print('| ' + ' | '.join(head) + ' |')
    print('|' + '---|' * len(head))
    for row in rows:
        print('| ' + ' | '.join(row) + ' |')


def layers(args) -> None:
    dtype = getattr(torch, args.dtype)
    on_gpu = args.device == 'cuda'
    others = [name for name in NORMS if name != 'BN']
    rows, single, memory = [], [], []
    for shape_name in args.shapes:
        for kernel in (3, 1):
            torch.manual_seed(0)
            jobs, held = layer_jobs(SHAPES[shape_name], kernel, args.device, dtype)
            times = medians(jobs, args, at_once=10 if on_gpu else 1)
            base = times['BN']
            floor = base + times['weight gradient']
            rows.append(
                [f'{shape_name} {SHAPES[shape_name]} {kernel}x{kernel}', f'{base:.4g} ms']
                + [f'{times[name] / base:.2f}' for name in others]
                + [f'{floor / base:.2f}', f'{times["CBN exact"] / floor:.2f}']
            )
            label = f'{shape_name} {kernel}x{kernel}'
            peaks = [f'{peak_memory(fn):.0f} MiB' for fn in jobs.values()] if on_gpu else []
            memory.append([label, f'{held["CBN exact"]:.2f}', f'{held["CBN autograd"]:.2f}', *peaks])
            if on_gpu:
                waited = medians(jobs, args)
                waits = [f'{waited[name] / waited["BN"]:.2f} ({launches(jobs[name])})' for name in others]
                single.append([label, f'{waited["BN"]:.4g} ms ({launches(jobs["BN"])})', *waits])
            print(f'# {label}: ' + ', '.join(f'{k} {v:.4g} ms' for k, v in times.items()), file=sys.stderr)
    print(f'\n{describe(args)}, {args.dtype}, medians of {args.repeat} rounds\n')
    table(['convolution + norm', 'BN', *others, 'floor', 'CBN exact / floor'], rows)
    if on_gpu:
        print('\nOne step between two waits, and the kernels it starts\n')
        table(['convolution + norm', 'BN', *others], single)
    print('\nHeld between iterations, in weight tensors\n')
    peaks = [f'peak {name}' for name in (*NORMS, 'weight gradient')] if on_gpu else []
    table(['layer', 'closed form', 'autograd', *peaks], memory)


def model(args) -> None:
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    from mmdet.registry import MODELS

    init_default_scope('mmdet')
    configs = Path(__file__).resolve().parent.parent / 'configs'
    base = Config.fromfile(configs / 'cbn' / 'mask_rcnn_r50_fpn_1x.py', lazy_import=False).model
    base.backbone.init_cfg = None
    norms = {'no norm': None, **{k: v for k, v in NORMS.items() if k != 'CBN autograd'}}
    height, width = args.size
    jobs = {}
    for name, norm_cfg in norms.items():
        torch.manual_seed(0)
        cfg = Config(base.to_dict())
        for part in (cfg.neck, cfg.roi_head.bbox_head, cfg.roi_head.mask_head):
            part.norm_cfg = norm_cfg
        net = MODELS.build(cfg.to_dict()).to(args.device).train()
        batch = net.data_preprocessor(synthetic_batch(args.batch, height, width), True)

        small = net.data_preprocessor(synthetic_batch(args.batch, 96, 96), True)
        for _ in range(4 if norm_cfg and norm_cfg['type'] == 'CBN' else 0):  # fill the histories
            net.parse_losses(net(**small, mode='loss'))[0].backward()

        def step(net=net, batch=batch):
            torch.manual_seed(1)  # the samplers draw the same RoIs for every norm
            losses = net(**batch, mode='loss')
            net.parse_losses(losses)[0].backward()
            net.zero_grad()

        jobs[name] = step
    times = medians(jobs, args)
    print(f'\n{describe(args)}, {args.batch} x {height}x{width}, medians of {args.repeat} rounds\n')
    rows = [[name, f'{ms:.0f} ms', f'{ms / times["BN"]:.3f}'] for name, ms in times.items()]
    table(['Mask R-CNN R-50-FPN training step', 'time', '/ BN'], rows)


def synthetic_batch(count: int, height: int, width: int) -> dict:
    """Noise with ten boxes and elliptic masks a picture: what the norms cost does not depend on what is seen."""
    import numpy as np
    from mmengine.structures import InstanceData

    from mmdet.structures import DetDataSample
    from mmdet.structures.masks import BitmapMasks

    rng = np.random.default_rng(0)
    samples, images = [], []
    yy, xx = np.mgrid[:height, :width]
    for index in range(count):
        centre, size = rng.uniform(0.2, 0.8, (10, 2)), rng.uniform(0.1, 0.4, (10, 2))
        scale = np.array([width, height])
        boxes = np.concatenate([(centre - size / 2) * scale, (centre + size / 2) * scale], 1)
        boxes = boxes.clip(0, [width, height, width, height])
        masks = [
            ((xx - (a + c) / 2) / (c - a) * 2) ** 2 + ((yy - (b + d) / 2) / (d - b) * 2) ** 2 <= 1
            for a, b, c, d in boxes
        ]
        sample = DetDataSample(
            metainfo=dict(
                img_id=index,
                img_shape=(height, width),
                ori_shape=(height, width),
                scale_factor=(1.0, 1.0),
                pad_shape=(height, width),
            )
        )
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor(boxes, dtype=torch.float32),
            labels=torch.from_numpy(rng.integers(0, 80, 10)),
            masks=BitmapMasks(np.stack(masks).astype(np.uint8), height, width),
        )
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
        samples.append(sample)
        images.append(torch.from_numpy(rng.integers(0, 255, (3, height, width), dtype=np.uint8)))
    return dict(inputs=images, data_samples=samples)


def describe(args) -> str:
    if args.device == 'cuda':
        return f'{torch.cuda.get_device_name()}, torch {torch.__version__}'
    return f'CPU, {torch.get_num_threads()} threads, {args.clock} time, torch {torch.__version__}'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    one = commands.add_parser('layers', help='one convolution with its norm')
    one.add_argument('--dtype', default='float32', choices=['float32', 'bfloat16', 'float16'])
    one.add_argument('--shapes', nargs='+', default=list(SHAPES), choices=list(SHAPES))
    whole = commands.add_parser('model', help='a training step of Mask R-CNN')
    whole.add_argument('--size', type=int, nargs=2, default=(320, 480), metavar=('H', 'W'))
    whole.add_argument('--batch', type=int, default=1)
    for command in (one, whole):
        command.add_argument('--device', default='cpu', choices=['cpu', 'cuda'])
        command.add_argument('--repeat', type=int, default=9)
        command.add_argument('--threads', type=int, help='CPU threads (default: all)')
        command.add_argument('--clock', default='wall', choices=['wall', 'cpu'])
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    dict(layers=layers, model=model)[args.command](args)


if __name__ == '__main__':
    main()
