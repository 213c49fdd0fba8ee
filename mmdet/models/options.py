"""Options of mmdet 3's config vocabulary: what is set must act or be refused, never pass unseen."""

from collections.abc import Iterable

from mmengine.model import initialize
from torch import nn

from mmdet.checkpoints import load_checkpoint
from mmdet.config.errors import UserError, suggest
from mmdet.registry import MODELS


def check_keys(owner: str, cfg: dict | None, known: Iterable[str]) -> None:
    """Refuse keys of a train_cfg or test_cfg that nothing reads.

    Raises:
        UserError: names the owner, the key, and the known ones.
    """
    known = set(known)
    for key in cfg or {}:
        if key not in known:
            raise UserError(f'{owner} has no key {key!r}.{suggest(key, known)} Known are {", ".join(sorted(known))}')


def build_neck(neck: dict | list[dict] | None) -> nn.Module | None:
    """One neck, or several in a row (`FPN` and `BFP`)."""
    if isinstance(neck, (list, tuple)):
        return nn.Sequential(*(MODELS.build(cfg) for cfg in neck))
    return None if neck is None else MODELS.build(neck)


def apply_init_cfg(module: nn.Module, init_cfg: dict | list[dict] | None) -> None:
    """Initialise a module as mmengine's initialisers (Normal, Xavier, Kaiming, Constant, ...) say.

    Without ``init_cfg`` the module keeps what its constructor did.
    """
    if init_cfg:
        initialize(module, init_cfg)


def init_detector_weights(detector: nn.Module) -> None:
    """What a detector's and its backbone's ``init_cfg`` name; called by the Runner once, before training."""
    detector.backbone.init_weights()
    cfg = detector.init_cfg
    if isinstance(cfg, dict) and cfg.get('type') == 'Pretrained':
        load_checkpoint(detector, cfg['checkpoint'], strict=False)
    else:
        apply_init_cfg(detector, cfg)
