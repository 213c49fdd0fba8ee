"""What a detector costs by its sizes alone: parameters, multiply-adds and activations of each of its stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torchvision  # noqa: F401 - registers the operator below
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import conv_flop_count, flop_registry

from mmdet.registry import MODELS

PROPOSALS, MASKS = 1000, 100  # of an image, where the config does not say
DENSE_HEADS = ('rpn_head', 'bbox_head')  # of a detector, as its attributes


@dataclass
class Count:
    """Of one image: `multiply_adds` of convolutions and matrix products, and `activations`, their outputs' values."""

    parameters: int = 0
    multiply_adds: int = 0
    activations: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.parameters + other.parameters, self.multiply_adds + other.multiply_adds,
                     self.activations + other.activations)


def count(
    cfg: dict, size: tuple[int, int], proposals: int | None = None, masks: int | None = None
) -> dict[str, Count]:
    """Count each stage of a detector for an image of `size` (h, w), allocating neither weights nor maps.

    Norms, activation functions and RoIAlign are not counted.

    Args:
        cfg: the config's `model`.
        proposals, masks: what the RoI heads see of an image; None: as many as test_cfg lets through.

    Returns:
        'backbone', 'neck', 'rpn head' or 'dense head', 'roi head', 'masks', those the detector has.
    """
    with torch.device('meta'), torch.no_grad():
        model = MODELS.build(cfg).eval()
        counts = {'backbone': _of(model.backbone, torch.empty(1, 3, *size))}
        features = model.backbone(torch.empty(1, 3, *size))
        if model.neck is not None:
            counts['neck'] = _of(model.neck, features)
            features = model.neck(features)
        for name in DENSE_HEADS:
            if hasattr(model, name):
                counts[stage_name(name)] = _of(getattr(model, name), features)
        if hasattr(model, 'roi_head'):
            counts |= _of_roi_head(model, proposals, masks)
    # what belongs to none of them, as a layer that all share
    rest = sum(p.numel() for p in model.parameters()) - sum(part.parameters for part in counts.values())
    return counts | ({'other': Count(rest)} if rest else {})


def stage_name(head: str) -> str:
    return 'rpn head' if head == 'rpn_head' else 'dense head'


class _Work(TorchDispatchMode):
    """Adds up what PyTorch has a formula for, `torch.utils.flop_counter`'s, and deformable convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.multiply_adds, self.activations = 0, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = function(*args, **(kwargs or {}))
        packet = function._overloadpacket
        if packet is torch.ops.torchvision.deform_conv2d:
            flops = conv_flop_count(args[0].shape, args[1].shape, out.shape)
        elif packet in flop_registry:
            flops = flop_registry[packet](*args, **(kwargs or {}), out_val=out)
        else:
            return out
        self.multiply_adds += flops // 2
        self.activations += (out[0] if isinstance(out, (tuple, list)) else out).numel()
        return out


def _of(module: nn.Module, *inputs: Any) -> Count:
    with _Work() as work:
        module(*inputs)
    return Count(sum(p.numel() for p in module.parameters()), work.multiply_adds, work.activations)


def _of_roi_head(model: nn.Module, proposals: int | None, masks: int | None) -> dict[str, Count]:
    """The heads on RoI features of the right shape, and the linear layers of a deformable RoI layer."""
    roi_head = model.roi_head
    numbers = dict(bbox=proposals or _limit(model.test_cfg.get('rpn'), PROPOSALS),
                   mask=masks or _limit(model.test_cfg.get('rcnn'), MASKS))
    counts = {}
    for kind, number in numbers.items():
        total = Count()
        for head, extractor in zip(_stages(roi_head, f'{kind}_head'), _stages(roi_head, f'{kind}_roi_extractor')):
            pooled = torch.empty(number, extractor.out_channels, *extractor.output_size, device='meta')
            for name, part in extractor.roi_layers[:1].named_modules():
                if name.endswith('_fc'):
                    total += _of(part, pooled.flatten(1))
            shared = getattr(roi_head, 'shared_head', None)
            if shared is not None:
                total += _of(shared, pooled)
                pooled = shared(pooled)
            total += _of(head, pooled)
        if total != Count():
            counts['roi head' if kind == 'bbox' else 'masks'] = total
    # each weight once, whichever stages share it
    whole = sum(p.numel() for p in roi_head.parameters())
    of_masks = sum(p.numel() for p in {p for head in _stages(roi_head, 'mask_head') for p in head.parameters()})
    counts['roi head'].parameters = whole - of_masks
    if 'masks' in counts:
        counts['masks'].parameters = of_masks
    return counts


def _stages(roi_head: nn.Module, name: str) -> list[nn.Module]:
    part = getattr(roi_head, name, None)
    return list(part) if isinstance(part, nn.ModuleList) else [part] if part is not None else []


def _limit(settings: dict | None, otherwise: int) -> int:
    """How many boxes of an image test_cfg lets through."""
    limit = (settings or {}).get('max_per_img', otherwise)
    return limit if limit > 0 else otherwise
