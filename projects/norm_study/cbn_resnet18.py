"""ResNet-18 with one norm everywhere, trained from scratch on tiny batches.

    python projects/norm_study/cbn_resnet18.py [--data digits shapes] [--seeds 5] [--epochs 4]

scikit-learn's digits (8x8 pixels, enlarged to 16x16; 1440 to train, 357 to test), and crops of the generated
shapes (4 classes, 16x16). The network is ResNet-18 for small images: a 3x3 stem without pooling, four stages of
two basic blocks, with 16 to 128 channels. At batch 2 its last stage normalises over 8 positions. The seeds run
side by side, as the groups of one network's convolutions: norms work per channel and do not notice.
Learning rate in proportion to the batch, rising during the first tenth and falling as a cosine; momentum of the
running statistics in proportion too, so that they span as many images whatever the batch. Accuracy is eval
mode's, on images not trained on: mean and standard deviation, with the running statistics of training, and with
statistics measured again on the training images with the final weights.
"""

import argparse
import math
import os
import sys
import time
from pathlib import Path

os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdet.layers import BATCH_NORMS, build_norm_layer, conv_norm, set_cbn_epoch

# label: batch, norm
SETTINGS = {
    'BN, batch 32': (32, dict(type='BN')),
    'BN, batch 2': (2, dict(type='BN')),
    'naive pooling (rho 0), batch 2': (2, dict(type='CBN', rho=0.0)),
    'CBN, batch 2': (2, dict(type='CBN')),
    'CBN, batch 2, burn-in 1 epoch': (2, dict(type='CBN', burnin=1)),
    'CBN root, batch 2': (2, dict(type='CBN', compensation='root')),
    'CBN root, batch 2, burn-in 1 epoch': (2, dict(type='CBN', compensation='root', burnin=1)),
    'CBN full gradient, batch 2': (2, dict(type='CBN', full_gradient=True)),
    'CBN root full gradient, batch 2': (2, dict(type='CBN', compensation='root', full_gradient=True)),
}


class Block(nn.Module):
    def __init__(self, runs: int, before: int, width: int, stride: int, norm_cfg: dict) -> None:
        super().__init__()
        self.conv1 = conv(runs, before, width, 3, stride)
        self.norm1 = build_norm_layer(norm_cfg, runs * width)[1]
        self.conv2 = conv(runs, width, width, 3, 1)
        self.norm2 = build_norm_layer(norm_cfg, runs * width)[1]
        self.down = None
        if stride > 1 or before != width:
            self.down, self.down_norm = (
                conv(runs, before, width, 1, stride),
                build_norm_layer(norm_cfg, runs * width)[1],
            )

    def forward(self, x: Tensor) -> Tensor:
        out = conv_norm(self.conv1, self.norm1, x).relu()
        out = conv_norm(self.conv2, self.norm2, out)
        return (out + (x if self.down is None else conv_norm(self.down, self.down_norm, x))).relu()


def conv(runs: int, before: int, width: int, kernel: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(runs * before, runs * width, kernel, stride, kernel // 2, groups=runs, bias=False)


class ResNet18(nn.Module):
    """``runs`` networks side by side: (N, runs, C, H, W) -> logits (N, runs, classes)."""

    def __init__(self, runs: int, channels: int, classes: int, norm_cfg: dict, width: int = 16) -> None:
        super().__init__()
        self.runs = runs
        self.stem, self.norm = conv(runs, channels, width, 3, 1), build_norm_layer(norm_cfg, runs * width)[1]
        blocks, before = [], width
        for stage in range(4):
            for index in range(2):
                now = width * 2**stage
                blocks.append(Block(runs, before, now, 2 if stage and not index else 1, norm_cfg))
                before = now
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Parameter(torch.zeros(runs, before, classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # as fan_out of one run, not of all
                fan_out = module.out_channels // runs * module.kernel_size[0] ** 2
                nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = conv_norm(self.stem, self.norm, x.flatten(1, 2)).relu()
        features = self.blocks(x).mean((2, 3)).unflatten(1, (self.runs, -1))
        return torch.einsum('nrc,rck->nrk', features, self.classifier)


def digits() -> tuple[Tensor, Tensor, int]:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images).float()[:, None] / 8 - 1
    return F.interpolate(images, size=16, mode='bilinear'), torch.from_numpy(data.target).long(), 1440


def shapes() -> tuple[Tensor, Tensor, int]:
    import json
    import tempfile

    import cv2

    from projects.demo.shapes import write_shapes

    crops, labels = [], []
    with tempfile.TemporaryDirectory() as folder:
        data = write_shapes(Path(folder) / 'shapes', train=700, val=1, size=160)
        info = json.loads((data / 'annotations' / 'instances_train.json').read_text())
        names = {image['id']: image['file_name'] for image in info['images']}
        categories = sorted(category['id'] for category in info['categories'])
        for annotation in info['annotations']:
            if annotation['iscrowd']:
                continue
            image = cv2.imread(str(data / 'train' / names[annotation['image_id']]))
            x, y, w, h = (int(round(v)) for v in annotation['bbox'])
            crop = cv2.resize(image[y : y + h, x : x + w], (16, 16), interpolation=cv2.INTER_AREA)
            crops.append(torch.from_numpy(crop).permute(2, 0, 1).float() / 64 - 2)
            labels.append(categories.index(annotation['category_id']))
    return torch.stack(crops)[:1800], torch.tensor(labels)[:1800], 1440


def train(data, batch: int, norm_cfg: dict, runs: int, epochs: int, lr: float, warmup: float) -> Tensor:
    """Accuracies (2, runs): with running statistics, and with statistics measured again."""
    images, labels, split = data
    torch.manual_seed(0)
    norm_cfg = dict(norm_cfg, momentum=0.1 * batch / 32)
    model = ResNet18(runs, images.shape[1], int(labels.max()) + 1, norm_cfg)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr * batch / 32, momentum=0.9, weight_decay=1e-4)
    steps = split // batch * epochs
    rate = lambda step: min(1, (step + 1) / (warmup * steps + 1)) * (1 + math.cos(math.pi * step / steps)) / 2  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    generator = torch.Generator().manual_seed(0)
    for epoch in range(epochs):
        set_cbn_epoch(model, epoch)
        order = torch.stack([torch.randperm(split, generator=generator) for _ in range(runs)], 1)
        for picked in order[: split // batch * batch].split(batch):
            logits = model(images[picked])
            # The runs' losses add up: each gets the gradient it would have alone.
            loss = F.cross_entropy(logits.flatten(0, 1), labels[picked].flatten()) * runs
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    results = [accuracy(model, images[split:], labels[split:])]
    remeasure(model, images[:split])
    return torch.stack([*results, accuracy(model, images[split:], labels[split:])])


@torch.no_grad()
def accuracy(model: ResNet18, images: Tensor, labels: Tensor) -> Tensor:
    model.eval()
    test = images[:, None].expand(-1, model.runs, -1, -1, -1)
    hits = torch.cat([model(part).argmax(2) for part in test.split(60)]) == labels[:, None]
    return hits.float().mean(0) * 100


@torch.no_grad()
def remeasure(model: ResNet18, images: Tensor) -> None:
    """Replace the running statistics by those of the training images in batches of 60 with the final weights."""
    model.train()
    for norm in model.modules():
        if isinstance(norm, BATCH_NORMS):
            norm.reset_running_stats()
            norm.momentum, norm.buffer_num = None, 0
    for part in images[:, None].expand(-1, model.runs, -1, -1, -1).split(60):
        model(part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', nargs='+', default=['digits', 'shapes'], choices=['digits', 'shapes'])
    parser.add_argument('--settings', nargs='+', default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument('--seeds', type=int, default=5)
    parser.add_argument('--epochs', type=int, default=4)
    parser.add_argument('--lr', type=float, default=0.1, help='at batch 32')
    parser.add_argument('--warmup', type=float, default=0.1, help='part of the training with a rising rate')
    parser.add_argument('--threads', type=int, help='CPU threads (default: all)')
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    rows = {label: [] for label in args.settings}
    for name in args.data:
        data = dict(digits=digits, shapes=shapes)[name]()
        for label in args.settings:
            start = time.process_time()
            reached = train(data, *SETTINGS[label], args.seeds, args.epochs, args.lr, args.warmup)
            rows[label].append(' | '.join(f'{part.mean():.2f} ± {part.std():.2f}' for part in reached))
            seconds = time.process_time() - start
            print(f'# {name}, {label}: {rows[label][-1]}, {seconds:.0f} CPU s', file=sys.stderr, flush=True)
    print(f'\n{args.seeds} seeds, {args.epochs} epochs, warm-up {args.warmup}\n')
    print('| ResNet-18 | ' + ' | '.join(f'{name} | remeasured' for name in args.data) + ' |')
    print('|---' * (2 * len(args.data) + 1) + '|')
    for label, row in rows.items():
        print(f'| {label} | {" | ".join(row)} |')


if __name__ == '__main__':
    main()
