"""What the config of the classification study names: the network, the images and the metric.

N images (N, 3, H, W); K classes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from torch import Tensor, nn
from torchvision import models
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from mmdet.layers import build_norm_layer, convert_cbn
from mmdet.registry import DATASETS, METRICS, MODELS

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB in 0 to 1
TOP = (1, 5)


def resnet18(norm_cfg: dict, num_classes: int) -> nn.Module:
    """torchvision's, from random weights, with one norm in place of each of its 20 BatchNorm2d."""
    options = dict(norm_cfg)
    if options.pop('type') == 'CBN':  # it has to know its convolution
        return convert_cbn(models.resnet18(num_classes=num_classes), **options)
    return models.resnet18(num_classes=num_classes, norm_layer=lambda channels: build_norm_layer(norm_cfg, channels)[1])


@MODELS.register_module()
class NormStudyResNet18(BaseModel):
    """Images and labels (N,) -> cross-entropy in training, logits (N, K) and labels for the metric."""

    def __init__(self, norm_cfg: dict, num_classes: int, data_preprocessor: dict | None = None) -> None:
        super().__init__(data_preprocessor)
        self.num_classes = num_classes
        self.network = resnet18(norm_cfg, num_classes)

    def forward(self, images: Tensor, labels: Tensor | None = None, mode: str = 'tensor') -> Tensor | dict | list:
        logits = self.network(images)
        if mode == 'loss':
            return dict(loss=F.cross_entropy(logits, labels))
        return list(zip(logits, labels)) if mode == 'predict' else logits


@DATASETS.register_module()
class ClassFolders(ImageFolder):
    """torchvision's ImageFolder, one folder a class, with the augmentation that is usual for ImageNet.

    Args:
        size: pixels of a side of what the network sees.
        training: a random crop of 8 to 100 % of the area, mirrored with chance one half; else the centre of an image
            whose shorter side is 8/7 of ``size``.
    """

    def __init__(self, root: str, size: int, training: bool) -> None:
        crop = [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()]
        if not training:
            crop = [v2.Resize(size * 8 // 7), v2.CenterCrop(size)]
        numbers = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
        super().__init__(root, v2.Compose([*crop, *numbers]))
        self.metainfo = dict(classes=tuple(self.classes))


@METRICS.register_module()
class TopAccuracy(BaseMetric):
    """Images, in %, whose class is the highest logit, and among the five highest."""

    def process(self, data_batch: Sequence, data_samples: Sequence[tuple[Tensor, Tensor]]) -> None:
        for logits, label in data_samples:
            rank = int((logits > logits[label]).sum())
            self.results.append([rank < top for top in TOP])

    def compute_metrics(self, results: list) -> dict[str, float]:
        return {f'top{top}': 100 * sum(hits) / len(hits) for top, hits in zip(TOP, zip(*results))}
