"""The parts that all detectors are built from in the same way."""

from torch import nn

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


def build_neck(cfg: dict | list[dict] | None) -> nn.Module | None:
    """One neck, or several in a row (`FPN` and `BFP`)."""
    if isinstance(cfg, (list, tuple)):
        return nn.Sequential(*(MODELS.build(part) for part in cfg))
    return None if cfg is None else MODELS.build(cfg)
