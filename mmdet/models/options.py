"""What train_cfg and test_cfg of the heads may say, and what it means.

S samples (anchors or RoIs).
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from mmdet.config.errors import UserError, suggest


def check_keys(owner: str, cfg: dict | None, known: Iterable[str]) -> None:
    """Refuse keys of a train_cfg or test_cfg that nothing reads.

    Raises:
        UserError: names the owner, the key, and the known ones.
    """
    known = set(known)
    for key in cfg or {}:
        if key not in known:
            raise UserError(f'{owner} has no key {key!r}.{suggest(key, known)} Known are {", ".join(sorted(known))}')


def weight_positives(is_positive: Tensor, pos_weight: float) -> Tensor | None:
    """``train_cfg.pos_weight`` as weights (S,) of the classification loss; None where it is not set (negative or 0)."""
    if pos_weight <= 0:
        return None
    return torch.where(is_positive, float(pos_weight), 1.0)
