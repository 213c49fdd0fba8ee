"""Size and work of models: python tools/dev/model_table.py CONFIG... [--size H W] [--steps N]

For each config file, one row of a Markdown table: parameters (millions), multiply-adds of one test image (billions; of
convolutions and matrix products, with 1000 proposals and 100 masks). With --steps, also the seconds of a training step
with one made-up image, on the first GPU or in CPU time, and the MB that its forward pass keeps for the gradients.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mmdet.cli.parser import Parser
from mmdet.config.errors import run_main

PROPOSALS, MASKS = 1000, 100  # of an image, whatever the config: rows can be compared


def measure(cfg: dict, size: tuple[int, int], steps: int) -> tuple[float, float]:
    """Seconds of a training step, and the MB that the step before keeps for its gradients."""
    import torch

    from mmdet.engine.memory import keeping
    from mmdet.layers import set_cbn_epoch
    from mmdet.registry import MODELS

    torch.manual_seed(0)  # the same image, proposals and samples for all models
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    model = MODELS.build(cfg).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9)
    data, kept = _made_up(size), {}

    def step() -> None:
        losses = model(**model.data_preprocessor(data, True), mode='loss')
        optimizer.zero_grad()
        model.parse_losses(losses)[0].backward()
        optimizer.step()

    set_cbn_epoch(model, sys.maxsize)  # behind the burn-in
    with keeping(kept, model.state_dict().values()):
        step()
    started = _now(device)
    for _ in range(steps):
        step()
    return (_now(device) - started) / steps, sum(kept.values()) / 1e6


def _now(device: str) -> float:
    import torch

    if device == 'cpu':
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def _made_up(size: tuple[int, int]) -> dict:
    """An image of noise with seven objects, and proposals for models that bring none."""
    import numpy as np
    import torch
    from mmengine.structures import InstanceData

    from mmdet.structures import DetDataSample
    from mmdet.structures.masks import BitmapMasks

    def boxes(count: int) -> torch.Tensor:
        corners = torch.rand(count, 2, 2) * torch.tensor([size[1] - 64.0, size[0] - 64.0])
        first, last = corners.amin(1), corners.amax(1) + 32
        return torch.cat([first, last], dim=1)

    sample = DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0), img_id=0))
    masks = BitmapMasks(np.ones((7, *size), np.uint8), *size)
    sample.gt_instances = InstanceData(bboxes=boxes(7), labels=torch.arange(7), masks=masks)
    sample.proposals = InstanceData(bboxes=boxes(PROPOSALS))
    return dict(inputs=[torch.randint(0, 256, (3, *size), dtype=torch.uint8)], data_samples=[sample])


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
        columns += ['step, s', 'kept, MB']
    print(f'| {" | ".join(columns)} |\n|{"---|" * len(columns)}')
    for path in args.configs:
        cfg = load_config(path)
        drop_pretrained(cfg.model)
        total = sum(count(cfg.model, tuple(args.size), PROPOSALS, MASKS).values(), Count())
        row = [str(Path(path).stem), f'{total.parameters / 1e6:.1f}', f'{total.multiply_adds / 1e9:.0f}']
        if args.steps:
            seconds, kept = measure(cfg.model, tuple(args.size), args.steps)
            row += [f'{seconds:.2f}', f'{kept:,.0f}']
        print(f'| {" | ".join(row)} |', flush=True)


if __name__ == '__main__':
    run_main(main)
