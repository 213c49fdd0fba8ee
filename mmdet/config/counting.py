"""Training loops count epochs or iterations; what counts along with them must count the same.

mmengine lets a loop of iterations run with schedules and hooks that wait for the end of an epoch, which never comes,
and a loop of epochs with a sampler whose epoch never ends.
"""

import inspect
from collections.abc import Iterator
from typing import Any

from mmengine.dataset import InfiniteSampler
from mmengine.registry import Registry
from mmengine.runner import IterBasedTrainLoop

from mmdet.config.errors import UserError
from mmdet.registry import DATA_SAMPLERS, HOOKS, LOOPS, PARAM_SCHEDULERS

_LOOPS = {True: 'EpochBasedTrainLoop', False: 'IterBasedTrainLoop'}  # by_epoch, by which mmengine would choose its own


def loop_type(train_cfg: dict) -> Any:
    """The loop that a `train_cfg` asks for, by ``type`` or ``by_epoch``.

    Raises:
        UserError: the two contradict each other, or neither is there.
    """
    if 'by_epoch' not in train_cfg:
        if 'type' not in train_cfg:
            raise UserError("train_cfg has no type; dict(type='EpochBasedTrainLoop', max_epochs=N) is usual")
        return train_cfg['type']
    by_epoch = train_cfg['by_epoch']
    if by_epoch not in (True, False):
        raise UserError(f'train_cfg.by_epoch={by_epoch!r}: True or False is needed')
    if train_cfg.get('type', _LOOPS[by_epoch]) != _LOOPS[by_epoch]:
        raise UserError(f"train_cfg has type={train_cfg['type']!r} and by_epoch={by_epoch}: one of them is to go")
    return _LOOPS[by_epoch]


def counts_iterations(train_cfg: dict) -> bool:
    """Whether a `train_cfg` asks for a loop without epochs."""
    return _is_a(LOOPS, loop_type(train_cfg), IterBasedTrainLoop)


def check_counting(cfg: dict, training: bool) -> None:
    """Check the loops of a config against its samplers, schedules and hooks.

    Raises:
        UserError: a part of the config whose turn would never come, or a sampler with which nothing ends.
    """
    endless_is_fine = training and counts_iterations(cfg['train_cfg'])
    for phase in ('train', 'val', 'test') if training else ('test',):
        sampler = (cfg.get(f'{phase}_dataloader') or {}).get('sampler')
        endless = isinstance(sampler, dict) and _is_a(DATA_SAMPLERS, sampler.get('type'), InfiniteSampler)
        if endless and not (phase == 'train' and endless_is_fine):
            other = ', or train_cfg=dict(by_epoch=False, max_iters=N)' if phase == 'train' else ''
            raise UserError(f'{phase}_dataloader.sampler.type={sampler["type"]!r}: it never comes to the end of the '
                            f'data, which is waited for here; use DefaultSampler{other}')
    train_cfg = cfg.get('train_cfg') or {}
    last = train_cfg.get('max_iters' if endless_is_fine else 'max_epochs')
    if training and last is not None and train_cfg.get('val_begin', 1) > last and cfg.get('val_cfg') is not None:
        raise UserError(f'train_cfg.val_begin={train_cfg["val_begin"]} is beyond the end, {last}: nothing would be '
                        'evaluated. Lower it, or set val_dataloader=None val_cfg=None val_evaluator=None')
    schedulers = [(place, part, _class(PARAM_SCHEDULERS, part['type']))
                  for place, part in _parts(cfg.get('param_scheduler'), 'param_scheduler')]
    after_evaluations = [place for place, _, cls in schedulers if getattr(cls, 'need_val_args', False)]
    for place, part, _ in schedulers if training else ():
        if place in after_evaluations and not part.get('by_epoch', True):
            raise UserError(f'{place} ({part["type"]}) counts evaluations, in either kind of loop: leave by_epoch out')
    if not endless_is_fine:
        return
    for place, part, cls in schedulers:
        if not _by_epoch(cls, part) or place in after_evaluations:
            continue
        if not part.get('convert_to_iter_based'):
            raise UserError(_never(place, part, 'begin, end, milestones and the like'))
        if 'end' not in part:
            raise UserError(f'{place} ({part["type"]}) has no end: it would be the first pass over the data. Give it, '
                            'in such passes')
    for key in ('default_hooks', 'custom_hooks'):
        for place, part in _parts(cfg.get(key), key):
            if _by_epoch(_class(HOOKS, part['type']), part):
                raise UserError(_never(place, part, 'interval'))


def _never(place: str, part: dict, count: str) -> str:
    return (f'{place} ({part["type"]}) counts epochs, and train_cfg iterations: its turn would never come. Set its '
            f'by_epoch=False and give its {count} in iterations')


def _parts(node: Any, place: str) -> Iterator[tuple[str, dict]]:
    """The dicts with a type at the top of nested dicts and lists."""
    if isinstance(node, dict) and 'type' in node:
        yield place, node
    elif isinstance(node, (dict, list, tuple)):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _parts(value, f'{place}.{key}')


def _by_epoch(cls: type | None, part: dict) -> bool:
    default = _options(cls).get('by_epoch')
    return default is not None and part.get('by_epoch', default.default) is True


def _options(cls: type | None) -> dict[str, inspect.Parameter]:
    """The options of a class and, where it passes them on, of those that it is based on."""
    classes = reversed(cls.__mro__) if cls is not None else ()
    return {name: option for c in classes if '__init__' in vars(c)
            for name, option in inspect.signature(c.__init__).parameters.items()}  # fmt: skip


def _class(registry: Registry, kind: Any) -> type | None:
    found = registry.get(kind) if isinstance(kind, str) else kind
    return found if isinstance(found, type) else None


def _is_a(registry: Registry, kind: Any, base: type) -> bool:
    cls = _class(registry, kind)
    return cls is not None and issubclass(cls, base)
