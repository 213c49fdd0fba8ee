"""Randomly initialised torchvision detectors that find dozens of objects, and photographs to feed them."""

from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.image_list import ImageList

# Standard deviation that each output layer gets on the calibration images.
_SPREAD = {
    'rpn.head.cls_logits': 2.0,
    'rpn.head.bbox_pred': 0.2,
    'roi_heads.box_predictor.cls_score': 2.5,
    'roi_heads.box_predictor.bbox_pred': 0.8,
    'roi_heads.mask_predictor.mask_fcn_logits': 2.0,
    'head.classification_head.cls_logits': 2.0,
    'head.regression_head.bbox_reg': 0.2,
}


def photos(real_data: Path, height: int, limit: int = 2) -> tuple[Tensor, list[tuple[int, int]]]:
    """Normalised RGB photos of about this height, zero-padded to one batch of multiples of 32, and their sizes."""
    paths = [*sorted((real_data / 'photos').glob('*.jpg')), *sorted((real_data / 'coco_dev' / 'val2017').glob('*.jpg'))]
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    images = []
    for path in paths[:limit]:
        image = cv2.imread(str(path))[..., ::-1]
        scale = height / image.shape[0]
        image = cv2.resize(image, (round(image.shape[1] * scale), height), interpolation=cv2.INTER_AREA)
        images.append(torch.from_numpy((image / 255 - mean) / std).permute(2, 0, 1).float())
    sizes = [tuple(image.shape[-2:]) for image in images]
    shape = [-(-max(size[axis] for size in sizes) // 32) * 32 for axis in (0, 1)]
    batch = torch.zeros(len(images), 3, *shape)
    for row, image in zip(batch, images):
        row[:, : image.shape[1], : image.shape[2]] = image
    return batch, sizes


def lively_model(name: str, batch: Tensor, sizes: list[tuple[int, int]], seed: int = 0, **kwargs) -> nn.Module:
    """torchvision's detector `name` in eval mode, its norms fitted to `batch` and its outputs spread out."""
    torch.manual_seed(seed)
    model = getattr(detection, name)(weights=None, weights_backbone=None, **kwargs)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.2)
    model.eval()
    for norm in norms:
        norm.train()
    with torch.no_grad(), spread_outputs(model, _SPREAD):
        run(model, batch, sizes)
    if hasattr(model, 'head'):
        # Class 0 is the background, which a trained RetinaNet never predicts.
        logits = model.head.classification_head.cls_logits
        logits.bias.data -= 5.0
        logits.bias.data.unflatten(0, (-1, model.head.classification_head.num_classes))[:, 0] = -1e4
    return model.eval()


@contextmanager
def spread_outputs(model: nn.Module, spreads: dict[str, float]):
    """Scale each named layer so that its outputs have this standard deviation."""
    modules = dict(model.named_modules())
    handles = [
        modules[name].register_forward_hook(_spread_once(spread)) for name, spread in spreads.items() if name in modules
    ]
    yield
    for handle in handles:
        handle.remove()


def _spread_once(spread: float):
    called = []

    def hook(module, inputs, output):
        # A layer shared by the pyramid's levels is called on each; the one that spreads most decides.
        factor = spread / output.std().clamp(min=1e-12)
        if called and factor >= 1:
            return output
        module.weight.data *= factor
        if not called:
            nn.init.normal_(module.bias, std=0.3 * spread)
        called.append(True)
        return module.forward(*inputs)

    return hook


def run(model: nn.Module, batch: Tensor, sizes: list[tuple[int, int]]) -> tuple[list[Tensor], list[dict]]:
    """Proposals (RCNN only) and detections of images already normalised; torchvision's own resizing is bypassed."""
    features = model.backbone(batch)
    images = ImageList(batch, sizes)
    if hasattr(model, 'roi_heads'):
        proposals, _ = model.rpn(images, features)
        detections, _ = model.roi_heads(features, proposals, sizes)
        return proposals, detections
    maps = list(features.values())
    outputs = model.head(maps)
    anchors = model.anchor_generator(images, maps)
    counts = [x.shape[2] * x.shape[3] * model.anchor_generator.num_anchors_per_location()[0] for x in maps]
    split = {key: list(value.split(counts, dim=1)) for key, value in outputs.items()}
    return [], model.postprocess_detections(split, [list(a.split(counts)) for a in anchors], sizes)
