"""What data sets of every format check of their config."""

from __future__ import annotations

import os
from collections.abc import Callable

from mmdet.config.errors import UserError
from mmdet.config.values import class_of
from mmdet.datasets.transforms import PackDetInputs


def check_packed(cfg: dict, path: str, whole: dict) -> None:
    """Raise UserError for a data set's config, at `path` of the `whole`, whose pipeline has known transforms alone and
    none that packs its results. Inside a wrapper that has a pipeline none need be."""
    around = whole
    for key in path.split('.'):
        if isinstance(around, dict) and 'pipeline' in around:
            return
        around = around[int(key) if isinstance(around, (list, tuple)) else key]
    steps = cfg.get('pipeline') or ()
    if all(_cannot_pack(step) for step in steps):
        names = [step.get('type') for step in steps]
        raise UserError(f"{path}.pipeline must end with dict(type='PackDetInputs'), its steps are {names}")


def _cannot_pack(step: dict | Callable) -> bool:
    """Whether a transform of ours or of mmcv's, without others inside, packs nothing; of others nothing is known."""
    kind = class_of(step) if isinstance(step, dict) and 'transforms' not in step else None
    return isinstance(kind, type) and kind.__module__.startswith(('mmdet.', 'mmcv.')) and kind is not PackDetInputs


def with_class_names(cls: type, load: Callable[[dict | None], dict], metainfo: dict | None) -> dict:
    """What mmengine's `load` makes of a config's metainfo, with `classes` a tuple where there are any.

    Raises:
        UserError: names as mmdetection 2 and early versions of 3 wrote them, which nothing reads.
    """
    for place, given in (('metainfo', metainfo), (f'{cls.__name__}.METAINFO', cls.METAINFO), (cls.__name__, vars(cls))):
        for old in ('CLASSES', 'PALETTE'):
            if old in (given or {}):
                raise UserError(f'{place} has {old}, which nothing reads: write '
                                f"{'METAINFO = ' * (place == cls.__name__)}dict({old.lower()}=...)")
    if metainfo and isinstance(metainfo.get('classes'), str) and not os.path.isfile(metainfo['classes']):
        metainfo = dict(metainfo, classes=(metainfo['classes'],))  # mmengine would warn that it is not a file
    metainfo = load(metainfo)
    classes = metainfo.get('classes')
    if classes is not None:
        metainfo['classes'] = (classes,) if isinstance(classes, str) else tuple(classes)
    return metainfo
