"""The parts that all detectors are built from in the same way."""

import copy
from functools import partial

import torch
from torch import nn

from mmdet.config.contracts import on_first_call
from mmdet.config.errors import UserError, one_line
from mmdet.models import contracts
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample


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
    if cfg is None:
        return None
    channels = cfg.get('in_channels')
    if isinstance(channels, (list, tuple)):
        of = ', as many as neck.in_channels has'
        on_first_call(backbone, 'forward', partial(contracts.maps, count=len(channels), of=of))
    return MODELS.build(cfg)


def look_at_maps(backbone: nn.Module, neck: nn.Module | None, head: nn.Module | None) -> None:
    """Let the first maps be those of a pyramid, of as many levels as the head's anchors have."""
    last = neck[-1] if isinstance(neck, nn.Sequential) else neck
    strides = getattr(getattr(head, 'anchor_generator', None), 'strides', None)
    levels = None if strides is None else len(strides)
    of = '' if levels is None else ', one for each of anchor_generator.strides'
    on_first_call(backbone if last is None else last, 'forward', partial(contracts.maps, count=levels, of=of))
    on_first_call(backbone, 'forward', contracts.maps)


def look_at_training(detector: nn.Module, base: type) -> None:
    """Let the first samples be annotated; a subclass of `base` with a loss of its own may want others."""
    own = type(detector).loss is not base.loss
    on_first_call(detector, 'loss', contracts.losses, None if own else contracts.annotated)


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


def frame_of_input(image_shape: tuple[int, int]) -> dict:
    """The meta of an image of that (h, w) whose detections stay in pixels of the input."""
    return dict(img_shape=image_shape, ori_shape=image_shape, scale_factor=(1.0, 1.0))


def metas_of(data_samples: list[DetDataSample], rescale: bool) -> list[dict]:
    """What the heads read to bring detections back to the original images; or not to, as mmdetection's `rescale`."""
    metas = [sample.metainfo for sample in data_samples]
    return metas if rescale else [{**meta, **frame_of_input(meta['img_shape'])} for meta in metas]
