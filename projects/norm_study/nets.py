"""Networks of several seeds side by side, as the groups of one network's convolutions.

R    runs (seeds), N, C, H, W as usual; tensors are (N, R * C, H, W)

A grouped convolution keeps its groups apart, and so do norms that work per channel (or, GroupNorm, per group of
channels): R runs cost little more than one, and each is what it would be alone.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdet.layers import build_norm_layer, conv_norm


class SideBySide(nn.Module):
    """A stack of convolution, norm and ReLU with a linear classifier on the mean over the positions.

    Args:
        layers: (channels, kernel, stride, padding) of each convolution; residual where the shape stays.
        norm_cfg: GN's ``num_groups`` is meant per run.
        seeds: one per run; fixes its initial weights.
    """

    def __init__(
        self, in_channels: int, classes: int, layers, norm_cfg: dict | None, seeds: list[int]
    ) -> None:
        super().__init__()
        runs = len(seeds)
        self.runs, self.residual = runs, []
        norm_cfg = copy.deepcopy(norm_cfg)
        if norm_cfg and 'num_groups' in norm_cfg:
            norm_cfg['num_groups'] *= runs
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        before = in_channels
        for channels, kernel, stride, padding in layers:
            self.convs.append(
                nn.Conv2d(
                    runs * before,
                    runs * channels,
                    kernel,
                    stride,
                    padding,
                    groups=runs,
                    bias=norm_cfg is None,
                )
            )
            self.norms.append(build_norm_layer(norm_cfg, runs * channels)[1] if norm_cfg else nn.Identity())
            self.residual.append(before == channels and stride == 1)
            before = channels
        self.classifier = nn.Conv2d(runs * before, runs * classes, 1, groups=runs)
        self._init(seeds)

    @torch.no_grad()
    def _init(self, seeds: list[int]) -> None:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        for conv in (*self.convs, self.classifier):
            std = (2 / conv.weight[0].numel()) ** 0.5 if conv is not self.classifier else 0.01
            for part, generator in zip(conv.weight.chunk(self.runs), generators):
                part.copy_(torch.randn(part.shape, generator=generator) * std)
            if conv.bias is not None:
                conv.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """(N, R * C, H, W) -> logits (N, R, classes)."""
        for conv, norm, residual in zip(self.convs, self.norms, self.residual):
            y = F.relu(conv_norm(conv, norm, x))
            x = x + y if residual else y
        return self.classifier(x.mean((2, 3), keepdim=True)).view(len(x), self.runs, -1)
