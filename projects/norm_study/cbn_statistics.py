"""How well the history knows the statistics that past batches have under today's weight.

    python projects/norm_study/cbn_statistics.py conv                 one convolution, three learning rates
    python projects/norm_study/cbn_statistics.py mask-rcnn            CBN layers of a Mask R-CNN in training
    python projects/norm_study/cbn_statistics.py all --figure projects/norm_study/figures/cbn_statistics.png

While a network trains, the inputs of a layer's last three batches are kept. Now and then they are convolved with
today's weight, which gives their true statistics. One table holds the mean over channels and batches of
|estimate - true| / true for the variance, another that of |estimate - true| / true deviation for the mean.
All estimates are made from the same training run: they watch and do not take part.
``conv`` is a 3x3 convolution on random features of scikit-learn's two photographs, learning which part of which
photograph a crop shows; ``mask-rcnn`` is R-18-FPN with 256 channels on the generated shapes, from random weights.
"""

import argparse
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor, nn

from mmdet.layers import ConvModule, CrossIterBatchNorm2d
from mmdet.layers.cbn.derivatives import Grid, in_closed_form

WINDOW = 3


class ContiguousQuarter(CrossIterBatchNorm2d):
    """The derivative from one block: a quarter of the map, or of the RoIs."""

    def _derivatives(self, y, batch, call, group=None):
        inside = torch.zeros_like(y, dtype=torch.bool)
        n, _, height, width = y.shape
        if n >= 64:
            inside[: n // 4] = True
        else:
            inside[:, :, : height // 2, : width // 2] = True
        block = torch.where(inside, y, batch.mean.view(1, -1, 1, 1))  # where y is its mean, nothing is added
        derivatives = in_closed_form(call.x, block, batch, call.geometry, Grid((1, 1, 1), (0, 0, 0)))
        derivatives[:, :-1] *= inside.numel() / inside.sum()
        return derivatives


ESTIMATES = {
    'naive (rho 0)': (CrossIterBatchNorm2d, dict(rho=0.0)),
    'Taylor, all': (CrossIterBatchNorm2d, {}),
    'Taylor, 1/4': (CrossIterBatchNorm2d, dict(derivative_fraction=1 / 4)),
    'Taylor, 1/16': (CrossIterBatchNorm2d, dict(derivative_fraction=1 / 16)),
    'contiguous 1/4': (ContiguousQuarter, {}),
    'root, all': (CrossIterBatchNorm2d, dict(compensation='root')),
    'root, 1/4': (CrossIterBatchNorm2d, dict(compensation='root', derivative_fraction=1 / 4)),
    'root, 1/16': (CrossIterBatchNorm2d, dict(compensation='root', derivative_fraction=1 / 16)),
}


class Watch:
    """Follows one convolution in training; ``errors`` maps an estimate to its errors of variance and mean, one pair per
    moment measured."""

    def __init__(self, conv: nn.Conv2d) -> None:
        self.watchers = {
            name: layer(conv.out_channels, buffer_num=WINDOW, track_running_stats=False, **options)
            for name, (layer, options) in ESTIMATES.items()
        }
        self.inputs: list[Tensor] = []
        self.measuring = False
        self.errors: dict[str, list[Tensor]] = defaultdict(list)
        conv.register_forward_hook(self)

    def __call__(self, conv: nn.Conv2d, inputs: tuple, y: Tensor) -> None:
        if not conv.training or not torch.is_grad_enabled() or y.shape[0] == 0:
            return
        x, y = inputs[0].detach(), y.detach()
        if self.measuring and len(self.inputs) == WINDOW:
            self.measure(conv)
        for layer in self.watchers.values():
            layer(y, conv=conv, x=x)
        self.inputs = [*self.inputs, x.clone()][-WINDOW:]

    @torch.no_grad()
    def measure(self, conv: nn.Conv2d) -> None:
        weight = conv.weight.detach()
        outputs = [conv._conv_forward(x, weight, None) for x in self.inputs]
        true = torch.stack([y.var((0, 2, 3), correction=0) for y in outputs]).clamp(min=1e-12)
        true_mean = torch.stack([y.mean((0, 2, 3)) for y in outputs])
        for name, layer in self.watchers.items():
            mean, var = layer.history.estimate(weight.flatten(1), layer.rho, layer.compensation)
            oldest_first = [(layer.history.slot + i) % WINDOW for i in range(WINDOW)]
            of_var = (var.T[oldest_first] - true).abs() / true
            of_mean = (mean.T[oldest_first] - true_mean).abs() / true.sqrt()
            self.errors[name].append(torch.stack([of_var.mean(), of_mean.mean()]))

    def result(self) -> dict[str, list[float]]:
        return {name: torch.stack(values).mean(0).tolist() for name, values in self.errors.items()}


# -- one convolution ----------------------------------------------------------------------------------


def crops(count: int, size: int, generator: torch.Generator, photographs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Crops (N, 3, size, size) and the eighth of the two photographs that each was cut from."""
    images, labels = [], []
    for _ in range(count):
        label = int(torch.randint(8, (), generator=generator))
        photo = photographs[label // 4]
        height, width = photo.shape[1] // 2, photo.shape[2] // 2
        top = int(torch.randint(height - size, (), generator=generator)) + (label % 4 // 2) * height
        left = int(torch.randint(width - size, (), generator=generator)) + (label % 2) * width
        images.append(photo[:, top : top + size, left : left + size])
        labels.append(label)
    return torch.stack(images), torch.tensor(labels)


def one_convolution(lr: float, iterations: int) -> dict[str, dict[str, list[float]]]:
    from sklearn.datasets import load_sample_images

    photographs = [torch.tensor(p).permute(2, 0, 1).float() / 128 - 1 for p in load_sample_images().images]
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(3, 32, 5, 2, 2), nn.ReLU()).requires_grad_(False)
    block = ConvModule(32, 32, 3, padding=1, norm_cfg=dict(type='CBN', buffer_num=WINDOW))
    head = nn.Linear(32, 8)
    watch = Watch(block.conv)
    optimizer = torch.optim.SGD([*block.parameters(), *head.parameters()], lr=lr, momentum=0.9)
    early: dict[str, list[float]] = {}
    for iteration in range(iterations):
        images, labels = crops(4, 64, generator, photographs)
        watch.measuring = iteration < 20 or (iteration >= iterations - 50 and iteration % 5 == 0)
        if iteration == 20:
            early, watch.errors = watch.result(), defaultdict(list)
        loss = nn.functional.cross_entropy(head(block(stem(images)).mean((2, 3))), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {f'lr {lr}, its 4-20': early, f'lr {lr}, its {iterations - 50}-{iterations}': watch.result()}


# -- a detector ---------------------------------------------------------------------------------------


def mask_rcnn(lr: float, iterations: int) -> dict[str, dict[str, list[float]]]:
    from mmengine.config import Config
    from mmengine.registry import init_default_scope
    from torch.utils.data import DataLoader

    from mmdet.registry import DATASETS, MODELS
    from projects.demo.shapes import write_shapes

    init_default_scope('mmdet')
    configs = Path(__file__).resolve().parents[2] / 'configs'
    cfg = Config.fromfile(configs / 'cbn' / 'mask_rcnn_r50_fpn_1x.py', lazy_import=False).model
    norm = dict(type='CBN', buffer_num=WINDOW)
    cfg.backbone.update(depth=18, init_cfg=None, frozen_stages=-1, norm_eval=False)
    cfg.backbone.norm_cfg = dict(type='BN')
    cfg.neck.update(in_channels=[64, 128, 256, 512], norm_cfg=norm)
    cfg.roi_head.bbox_head.update(num_classes=4, norm_cfg=norm)
    cfg.roi_head.mask_head.update(num_classes=4, norm_cfg=norm)
    cfg.train_cfg.rcnn.sampler.num = 128
    torch.manual_seed(0)
    model = MODELS.build(cfg.to_dict()).train()
    watches = {
        'FPN 3x3, stride 8': Watch(model.neck.fpn_convs[1].conv),
        'box head, 2nd conv': Watch(model.roi_head.bbox_head.shared_convs[1].conv),
        'mask head, 2nd conv': Watch(model.roi_head.mask_head.convs[1].conv),
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
    with tempfile.TemporaryDirectory() as folder:
        data = write_shapes(Path(folder) / 'shapes', train=60, val=2, size=160)
        dataset = DATASETS.build(
            dict(
                type='CocoDataset',
                data_root=str(data),
                ann_file='annotations/instances_train.json',
                data_prefix=dict(img='train/'),
                metainfo=dict(classes=('circle', 'square', 'triangle', 'star')),
                pipeline=[
                    dict(type='LoadImageFromFile'),
                    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
                    dict(type='Resize', scale=(192, 192), keep_ratio=True),
                    dict(type='RandomFlip', prob=0.5),
                    dict(type='PackDetInputs'),
                ],
            )
        )
        generator = torch.Generator().manual_seed(0)
        loader = DataLoader(dataset, 2, shuffle=True, generator=generator, collate_fn=list)
        results, done = {}, 0
        while done < iterations:
            for samples in loader:
                for group in optimizer.param_groups:
                    group['lr'] = lr * min(1, (done + 1) / 20)
                last = done >= iterations - 15
                for watch in watches.values():
                    watch.measuring = 5 <= done < 20 or last
                    if done == 20:
                        watch.early, watch.errors = watch.result(), defaultdict(list)
                batch = dict(inputs=[s['inputs'] for s in samples], data_samples=[s['data_samples'] for s in samples])
                loss, _ = model.parse_losses(model(**model.data_preprocessor(batch, True), mode='loss'))
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 35)
                optimizer.step()
                done += 1
                if done == iterations:
                    break
    for name, watch in watches.items():
        results[f'{name}, its 5-20'] = watch.early
        results[f'{name}, its {iterations - 15}-{iterations}'] = watch.result()
    return results


# -- output -------------------------------------------------------------------------------------------


def show(results: dict[str, dict[str, list[float]]]) -> None:
    for which, title in enumerate(('variance', 'mean, in deviations')):
        print(f'\nError of the {title}\n\n| layer | ' + ' | '.join(ESTIMATES) + ' |')
        print('|---' * (len(ESTIMATES) + 1) + '|')
        for name, row in results.items():
            print(f'| {name} | ' + ' | '.join(f'{row[estimate][which]:.4f}' for estimate in ESTIMATES) + ' |')


def draw(results: dict[str, dict[str, list[float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    rows = list(results)
    figure, axes = plt.subplots(figsize=(9, 0.42 * len(rows) + 1.6))
    markers = 'ovs^xDP*'
    for marker, estimate in zip(markers, ESTIMATES):
        axes.plot([results[row][estimate][0] for row in rows], range(len(rows)), marker, label=estimate, alpha=0.8)
    axes.set_xscale('log')
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.grid(axis='both', alpha=0.3)
    axes.set_xlabel("relative error of the last three batches' variances under today's weight")
    axes.legend(fontsize=8, loc='center left', bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    print(f'\nwritten {path}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=['conv', 'mask-rcnn', 'all'])
    parser.add_argument('--iterations', type=int, help='default: 250 for conv, 120 for mask-rcnn')
    parser.add_argument('--figure', type=Path, help='also draw the table to this file')
    parser.add_argument('--threads', type=int, help='CPU threads (default: all)')
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    results: dict[str, dict[str, list[float]]] = {}
    if args.what != 'mask-rcnn':
        for lr in (0.002, 0.02, 0.1):
            results.update(one_convolution(lr, args.iterations or 250))
    if args.what != 'conv':
        results.update(mask_rcnn(0.01, args.iterations or 120))
    show(results)
    if args.figure:
        draw(results, args.figure)


if __name__ == '__main__':
    main()
