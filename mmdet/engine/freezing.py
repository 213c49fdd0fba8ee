"""Parts of a model that are not trained, by their names in the config.

mmengine can only leave parameters out of an optimizer: their norm layers would go on averaging statistics, and
DistributedDataParallel would wait for their gradients. It wraps a model before any hook is called, so parts are frozen
as soon as the model is built.
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

from mmdet.config.errors import UserError, at_most, suggest


def frozen_modules(model: nn.Module, patterns: str | Iterable[str]) -> list[nn.Module]:
    """The modules that the patterns name, and all inside them; see `freeze`."""
    roots = {name for pattern in _listed(patterns) for name in _matching(model, pattern)}
    return [module for name, module in model.named_modules() if _is_inside(name, roots)]


def freeze(model: nn.Module, patterns: str | Iterable[str]) -> tuple[int, int]:
    """Let no gradient reach some parts of a model.

    Args:
        patterns: dotted names of modules or parameters as ``model.named_modules()`` has them, with ``*``, ``?`` and
            ``[...]`` as in file names: 'backbone', 'neck.lateral_convs.*', '*.bias'. What is inside is frozen too.

    Returns:
        how many parameters (numbers) are frozen by this, and how many the model has.

    Raises:
        UserError: a pattern that names nothing, or nothing that is left to train.
    """
    roots = {name for pattern in _listed(patterns) for name in _matching(model, pattern)}
    frozen = [p for name, p in model.named_parameters() if _is_inside(name, roots) and p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad = False
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError(f'frozen_parts={patterns!r}: nothing is left to train')
    return sum(p.numel() for p in frozen), sum(p.numel() for p in model.parameters())


def _listed(patterns: str | Iterable[str]) -> list[str]:
    patterns = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(patterns, (list, tuple)) or not all(isinstance(p, str) and p for p in patterns):
        raise UserError(f"frozen_parts={patterns!r} must be a list of names such as ['backbone', 'neck.lateral*']")
    return list(patterns)


def _matching(model: nn.Module, pattern: str) -> list[str]:
    names = [name for name, _ in (*model.named_modules(), *model.named_parameters()) if name]
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        parts = [name for name, _ in model.named_children()]
        hint = suggest(pattern, names) or f' The model has {at_most(parts)}'
        raise UserError(f'frozen_parts: no part of the model is called {pattern!r}.{hint}')
    return found


def _is_inside(name: str, roots: set[str]) -> bool:
    parts = name.split('.')
    return any('.'.join(parts[:depth]) in roots for depth in range(1, len(parts) + 1))
