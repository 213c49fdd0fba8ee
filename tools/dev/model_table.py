"""Size and work of models: python tools/dev/model_table.py CONFIG... [--size H W] [--steps N]

For each config file, one row of a Markdown table: parameters (millions), multiply-adds of one test image (billions; of
convolutions and matrix products, with 1000 proposals and 100 masks). With --steps, also the seconds and the peak memory
(GiB) of a training step on the first GPU, or on the CPU, with the config's number of made-up images.
"""

import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mmdet.cli.parser import Parser
from mmdet.config.errors import run_main

PROPOSALS, MASKS = 1000, 100  # of an image, whatever the config: rows can be compared


def measure(cfg: dict, size: tuple[int, int], images: int, steps: int) -> tuple[float, float]:
    """Seconds of a training step and the peak of memory in GiB, after one step to warm up."""
    import torch

    from mmdet.registry import MODELS

    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    model = MODELS.build(cfg).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9)
    data = _made_up(size, images, PROPOSALS)
    started = 0.0
    for step in range(steps + 1):
        if step == 1:
            _wait(device)
            started = time.perf_counter()
        losses = model(**model.data_preprocessor(data, True), mode='loss')
        optimizer.zero_grad()
        model.parse_losses(losses)[0].backward()
        optimizer.step()
    _wait(device)
    seconds = (time.perf_counter() - started) / steps
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # of the process, and so of the largest so far
    return seconds, (torch.cuda.max_memory_allocated() if device == 'cuda' else peak) / 2**30


def _wait(device: str) -> None:
    import torch

    if device == 'cuda':
        torch.cuda.synchronize()


def _made_up(size: tuple[int, int], images: int, proposals: int) -> dict:
    """Noise with seven objects in each image, and proposals for models that bring none."""
    import numpy as np
    import torch
    from mmengine.structures import InstanceData

    from mmdet.structures import DetDataSample
    from mmdet.structures.masks import BitmapMasks

    def boxes(count: int) -> torch.Tensor:
        corners = torch.rand(count, 2, 2) * torch.tensor([size[1] - 64.0, size[0] - 64.0])
        first, last = corners.amin(1), corners.amax(1) + 32
        return torch.cat([first, last], dim=1)

    samples = []
    for index in range(images):
        sample = DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0), img_id=index))
        masks = BitmapMasks(np.ones((7, *size), np.uint8), *size)
        sample.gt_instances = InstanceData(bboxes=boxes(7), labels=torch.arange(7), masks=masks)
        sample.proposals = InstanceData(bboxes=boxes(proposals))
        samples.append(sample)
    return dict(inputs=list(torch.randint(0, 256, (images, 3, *size), dtype=torch.uint8)), data_samples=samples)


def main() -> None:
    parser = Parser('Size and work of models.')
    parser.add_argument('configs', nargs='+')
    parser.add_argument('--size', type=int, nargs=2, default=(800, 1216), metavar=('H', 'W'))
    parser.add_argument('--steps', type=int, default=0, help='training steps to time')
    args = parser.parse_args()
    import torch

    from mmdet.apis.counts import Count, count
    from mmdet.config.load import load_config
    from mmdet.engine.runner import drop_pretrained

    torch.manual_seed(0)
    columns = ['config', 'parameters, M', 'multiply-adds, G']
    if args.steps:
        columns += ['step, s', 'memory, GiB']
    print(f'| {" | ".join(columns)} |\n|{"---|" * len(columns)}')
    for path in args.configs:
        cfg = load_config(path)
        drop_pretrained(cfg.model)
        total = sum(count(cfg.model, tuple(args.size), PROPOSALS, MASKS).values(), Count())
        row = [str(Path(path).stem), f'{total.parameters / 1e6:.1f}', f'{total.multiply_adds / 1e9:.0f}']
        if args.steps:
            seconds, peak = measure(cfg.model, tuple(args.size), cfg.train_dataloader.batch_size, args.steps)
            row += [f'{seconds:.2f}', f'{peak:.1f}']
        print(f'| {" | ".join(row)} |', flush=True)


if __name__ == '__main__':
    run_main(main)
