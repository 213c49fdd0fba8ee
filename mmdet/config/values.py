"""Values in a config: where they stand, what class a part names, and what a value has to be."""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from mmdet.config.errors import UserError
from mmdet.registry import registered_class

Check = tuple[Callable[[Any], bool], str]  # whether a value is right, and what is needed


def whole_number(at_least: int) -> Check:
    return lambda x: type(x) is int and x >= at_least, f'a whole number of at least {at_least} is needed'


def number(low: float, high: float = math.inf) -> Check:
    needed = f'a number of at least {low}' if high == math.inf else f'a number from {low} to {high}'
    return lambda x: type(x) in (int, float) and low <= x <= high, f'{needed} is needed'


def one_of(*values: Any) -> Check:
    return lambda x: x in values, f'{" or ".join(map(repr, values))} is needed'


def some_numbers() -> Check:
    return lambda x: x is None or isinstance(x, (list, tuple)) and len(x) > 0, 'a list of numbers is needed'


_REMEDIES = {'val_interval': '. To train without validation set val_dataloader=None val_cfg=None val_evaluator=None'}


def walk(node: Any, path: str = '') -> Iterator[tuple[str, Any]]:
    """Every dotted path below a dict or list, at any depth, and its value."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        here = f'{path}.{key}' if path else str(key)
        yield here, value
        if isinstance(value, (dict, list, tuple)):
            yield from walk(value, here)


def check_options(cfg: dict, path: str, checks: dict[str, Check]) -> None:
    """Check the values in `cfg`, which stands at `path`, whose dotted keys match a pattern of `checks`.

    Raises:
        UserError: names the place, the value, and what is needed.
    """
    for key, value in walk(cfg):
        for pattern, (is_right, needed) in checks.items():
            if re.fullmatch(pattern, key) and not is_right(value):
                place = f'{path}.{key}' if path else key
                raise UserError(f'{place}={value!r}: {needed}{_REMEDIES.get(key.rpartition(".")[2], "")}')


def class_of(cfg: dict) -> type | None:
    """The class that the ``type`` of a part of a config names; None for none, or where that is not registered."""
    kind = cfg.get('type')
    return registered_class(kind) if isinstance(kind, str) else kind


def names_a(cfg: dict, base: type) -> bool:
    """Whether the ``type`` of a part of a config names `base`, or a class that is based on it."""
    kind = class_of(cfg)
    return isinstance(kind, type) and issubclass(kind, base)


def predicted_fields(model: dict) -> set[str] | None:
    """What a model's `pred_instances` will hold, as its class says; None where it does not say."""
    cls = class_of(model)
    return cls.predicts(model) if hasattr(cls, 'predicts') else None
