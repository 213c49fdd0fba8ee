"""What a detector's train_cfg and test_cfg may say, and what it means: checked before, and while, anything is built.

S samples (anchors or RoIs).
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from mmdet.config.errors import UserError, suggest
from mmdet.config.values import check_options, class_of, number, one_of

_CHECKS = {
    r'score_thr|mask_thr_binary|nms\.iou_threshold': number(0, 1),
    r'nms\.type': one_of('nms', 'soft_nms'),
    'mask_paste': one_of('resize'),
}


def check_heads(model: dict, path: str, training: bool, parts: dict[str, str]) -> None:
    """Check what a detector's heads read of its train_cfg and test_cfg.

    Args:
        model: the detector's config, which stands at `path`.
        parts: names of the heads, and the key of train_cfg and test_cfg that is theirs ('' for the whole). A head's
            class says by ``needs(cfg)`` what it has no default for.

    Raises:
        UserError: names the place and what is missing there, or wrong.
    """
    for head, part in parts.items():
        cls = class_of(model[head]) if model.get(head) else None
        if not hasattr(cls, 'needs'):
            continue
        for place, keys in cls.needs(model[head]).items():
            if place == 'train_cfg' and not training:
                continue
            where = f'{path}.{place}' + (f'.{part}' if part else '')
            settings = model.get(place) or {}
            settings = settings.get(part) if part else settings
            if not settings:
                raise UserError(f'the config has no {where}, which {path}.{head} needs; examples are in '
                                'configs/_base_/models')
            stages = settings if isinstance(settings, (list, tuple)) else [settings]
            for number_, stage in enumerate(stages):  # of a cascade
                stage_path = where if stage is settings else f'{where}.{number_}'
                check_settings(stage, keys, stage_path, f'{path}.{head}')


def check_settings(settings: dict, needed: tuple[str, ...], path: str, head: str) -> None:
    """Check that what a head needs is there, and the values that are; raises UserError."""
    missing = [key for key in needed if key not in settings]
    if missing:
        raise UserError(f'{path} has no {" and no ".join(missing)}, which {head} needs; examples are in '
                        'configs/_base_/models')
    check_options(settings, path, _CHECKS)


def check_keys(owner: str, cfg: dict | None, known: Iterable[str]) -> None:
    """Refuse keys of a train_cfg or test_cfg that nothing reads.

    Raises:
        UserError: names the owner, the key, and the known ones.
    """
    known = set(known)
    for key in cfg or {}:
        if key not in known:
            raise UserError(f'{owner} has no key {key!r}.{suggest(key, known)} Known are {", ".join(sorted(known))}')


def check_channels(part: nn.Module, maps: Sequence[Tensor], in_channels: Sequence[int]) -> None:
    """Refuse maps (N, C, H, W) of other channels than a part of the model was built for.

    Raises:
        UserError: names the part and the option to set.
    """
    given = [x.shape[1] for x in maps]
    if given != list(in_channels):
        built, now = (some[0] if len(set(some)) == 1 else list(some) for some in (in_channels, given))
        raise UserError(f'{type(part).__name__} was built for features of {built} channels and gets {now}: set its '
                        f'in_channels={now}')


def weight_positives(is_positive: Tensor, pos_weight: float) -> Tensor | None:
    """``train_cfg.pos_weight`` as weights (S,) of the classification loss; None where it is not set (negative or 0)."""
    if pos_weight <= 0:
        return None
    return torch.where(is_positive, float(pos_weight), 1.0)
