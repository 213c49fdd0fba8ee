"""The parts that all detectors are built from in the same way."""

import copy

import torch
from torch import nn

from mmdet.config.errors import UserError, one_line
from mmdet.registry import MODELS


def build_preprocessor(cfg: dict | None) -> nn.Module:
    """By default one that only stacks images of equal size."""
    return MODELS.build(cfg or dict(type='DetDataPreprocessor'))


def build_backbone(cfg: dict) -> nn.Module:
    """Any class from a batch (N, C, H, W) to a tuple of maps, fine to coarse.

    Its `init_cfg` waits for `mmdet.models.initialize`, whether or not its constructor knows that option.
    """
    cfg = dict(cfg)
    init_cfg = cfg.pop('init_cfg', None)
    backbone = MODELS.build(cfg)
    if init_cfg is not None:
        backbone.init_cfg = init_cfg
    return backbone


def build_neck(cfg: dict | list[dict] | None, backbone: nn.Module) -> nn.Module | None:
    """One neck, or several in a row (`FPN` and `BFP`); ``in_channels='auto'``: those of the backbone's maps."""
    if isinstance(cfg, (list, tuple)):
        return nn.Sequential(*(build_neck(part, backbone) for part in cfg))
    if cfg is not None and cfg.get('in_channels') == 'auto':
        cfg = dict(cfg, in_channels=channels_of(backbone))
    return None if cfg is None else MODELS.build(cfg)


def channels_of(backbone: nn.Module) -> list[int]:
    """Channels of each map: what the backbone says by `out_channels`, else what a copy of it without memory returns.

    Raises:
        UserError: it says nothing and cannot run without memory.
    """
    if getattr(backbone, 'out_channels', None):
        return list(backbone.out_channels)
    try:
        with torch.no_grad():
            maps = copy.deepcopy(backbone).to('meta').eval()(torch.zeros(1, 3, 64, 64, device='meta'))
        return [m.shape[1] for m in maps]
    except Exception as error:  # of any code of a user's
        raise UserError(
            f"neck.in_channels='auto': {type(backbone).__name__} has no attribute out_channels, a list of the channels "
            f'of its maps, and cannot run without memory to find them ({type(error).__name__}: {one_line(error)[:100]})'
        ) from error
