"""What a norm costs: convolution + norm, forward + backward, and a whole Mask R-CNN training step.

    python benchmarks/cbn.py layers [--device cpu] [--dtype float32] [--repeats 9] [--shapes fpn mask-head]
    python benchmarks/cbn.py model [--size 320 480] [--batch 1] [--repeats 5]
    --threads 1 --clock cpu    on a machine that others use too: CPU time of one thread instead of wall time

Norms take turns within each round, and the table gives medians over the rounds as ratios to BN, so that a slow
moment of the machine hits all alike. CBN's history is full. ``CBN exact / floor`` divides by the time of
convolution + BN plus one weight gradient of the same convolution, measured in the same rounds: no exact CBN can
do with less. On a GPU ten steps follow each other without a wait, as they do in training; a second table has single
steps, from one wait to the next, which show the host's time too, and the kernels that each starts.
"""

import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))

import torch
from common import Clock, add_options, machine, made_up_batch, parser_of, polygon_data, table

SHAPES = {
    'fpn': (2, 256, 100, 152),
    'box-head': (1024, 256, 7, 7),
    'mask-head': (256, 256, 14, 14),
}
NORMS = {
    'BN': dict(type='BN'),
    'SyncBN': dict(type='SyncBN'),
    'GN': dict(type='GN', num_groups=32),
    'BatchRenorm': dict(type='BatchRenorm'),
    'MABN': dict(type='MABN'),
    'FRN': dict(type='FRN'),
    'CBN autograd': dict(type='CBN', buffer_num=3),
    'CBN exact': dict(type='CBN', buffer_num=3),
    'CBN 1/4': dict(type='CBN', buffer_num=3, derivative_fraction=1 / 4),
    'CBN 1/16': dict(type='CBN', buffer_num=3, derivative_fraction=1 / 16),
}


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


def layers(args) -> None:
    dtype = getattr(torch, args.dtype)
    on_gpu = args.device == 'cuda'
    others = [name for name in NORMS if name != 'BN']
    rows, single, memory = [], [], []
    for shape_name in args.shapes:
        for kernel in (3, 1):
            torch.manual_seed(0)
            jobs, held = layer_jobs(SHAPES[shape_name], kernel, args.device, dtype)
            times = Clock(args).medians(jobs, args.repeats, 10 if on_gpu else 1)
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
                waited = Clock(args).medians(jobs, args.repeats)
                waits = [f'{waited[name] / waited["BN"]:.2f} ({launches(jobs[name])})' for name in others]
                single.append([label, f'{waited["BN"]:.4g} ms ({launches(jobs["BN"])})', *waits])
            print(f'# {label}: ' + ', '.join(f'{k} {v:.4g} ms' for k, v in times.items()), file=sys.stderr)
    print(f'\n{machine(args)}, {args.dtype}, medians of {args.repeats} rounds')
    table(['convolution + norm', 'BN', *others, 'floor', 'CBN exact / floor'], rows)
    if on_gpu:
        print('One step between two waits, and the kernels it starts')
        table(['convolution + norm', 'BN', *others], single)
    print('Held between iterations, in weight tensors')
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
    norms = {name: norm for name, norm in norms.items() if not args.norms or name in ('BN', *args.norms)}
    layout = torch.channels_last if args.amp and args.device == 'cpu' else torch.contiguous_format
    height, width = args.size
    jobs = {}
    for name, norm_cfg in norms.items():
        torch.manual_seed(0)
        cfg = Config(base.to_dict())
        for part in (cfg.neck, cfg.roi_head.bbox_head, cfg.roi_head.mask_head):
            part.norm_cfg = norm_cfg
        net = MODELS.build(cfg.to_dict()).to(args.device, memory_format=layout).train()
        batch = net.data_preprocessor(synthetic_batch(args.batch, height, width), True)

        small = net.data_preprocessor(synthetic_batch(args.batch, 96, 96), True)
        for _ in range(4 if norm_cfg and norm_cfg['type'] == 'CBN' else 0):  # fill the histories
            net.parse_losses(net(**small, mode='loss'))[0].backward()

        def step(net=net, batch=batch):
            torch.manual_seed(1)  # the samplers draw the same RoIs for every norm
            with torch.autocast(args.device, enabled=args.amp):
                losses = net(**batch, mode='loss')
            net.parse_losses(losses)[0].backward()
            net.zero_grad()

        jobs[name] = step
    times = Clock(args).medians(jobs, args.repeats)
    precision = 'autocast' if args.amp else 'float32'
    print(f'\n{machine(args)}, {args.batch} x {height}x{width}, {precision}, medians of {args.repeats} rounds')
    rows = [[name, f'{ms:.0f} ms', f'{ms / times["BN"]:.3f}'] for name, ms in times.items()]
    table(['Mask R-CNN R-50-FPN training step', 'time', '/ BN'], rows)


def synthetic_batch(count: int, height: int, width: int) -> dict:
    return polygon_data(made_up_batch(count, height, width))


def main() -> None:
    parser = parser_of(__doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    one = commands.add_parser('layers', help='one convolution with its norm')
    one.add_argument('--dtype', default='float32', choices=['float32', 'bfloat16', 'float16'])
    one.add_argument('--shapes', nargs='+', default=list(SHAPES), choices=list(SHAPES))
    whole = commands.add_parser('model', help='a training step of Mask R-CNN')
    whole.add_argument('--size', type=int, nargs=2, default=(320, 480), metavar=('H', 'W'))
    whole.add_argument('--batch', type=int, default=1)
    whole.add_argument('--amp', action='store_true', help='autocast, on a CPU with channels_last maps')
    whole.add_argument('--norms', nargs='+', choices=['no norm', *NORMS], help='beside BN (default: all)')
    for command in (one, whole):
        add_options(command, repeats=9)
    args = parser.parse_args()
    dict(layers=layers, model=model)[args.command](args)


if __name__ == '__main__':
    main()
