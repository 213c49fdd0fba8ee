"""``data = dict(root=..., train=..., val=...)`` of a config: one line for what mmdetection's vocabulary repeats.

It is expanded when the config is loaded, and gone then: `mmdet config` shows what it became.

    key         what it sets
    root        data_root of every data set; the folder that the others are below
    train       ann_file of the training set, COCO's format
    val, test   those of validation and of testing (default: val); with val=None training goes without validation
    images      folder of the images, or dict(train=..., val=..., test=...) (default: root; test's is val's, as above)
    classes     metainfo.classes, and num_classes of every head (default: the categories of the training file)
    scale       scale of every Resize
    batch_size, num_workers     of the training set's loader
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmdet.config.errors import MissingFile, UserError, suggest
from mmdet.config.values import walk

_KEYS = ('root', 'train', 'val', 'test', 'images', 'classes', 'scale', 'batch_size', 'num_workers')
_PARTS = {
    'train': ('train_dataloader', 'train_cfg', 'optim_wrapper'),
    'val': ('val_dataloader', 'val_cfg', 'val_evaluator'),
    'test': ('test_dataloader', 'test_cfg', 'test_evaluator'),
}


def expand_data(cfg: Config, options: dict[str, Any] | None = None) -> dict[str, Any]:
    """Expand the config's `data`, in place.

    Args:
        options: --cfg-options; ``data.root=...`` and the like change `data` before it is expanded, or with
            ``data.train=...`` stand for it in a config that has none.

    Returns:
        The other options.

    Raises:
        UserError: an unknown key, a wrong value, or a part of the config to which it could not apply.
    """
    options = dict(options or {})
    short = cfg.get('data')
    given = {key.removeprefix('data.'): options[key] for key in options if key.startswith('data.')}
    if not is_short(given if short is None else short):
        return options
    data = {} if short is None else cfg.pop('data').to_dict()
    for key, value in given.items():
        head, _, name = key.partition('.')
        data[head] = (data[head] if isinstance(data.get(head), dict) else {}) | {name: value} if name else value
    options = {key: value for key, value in options.items() if not key.startswith('data.')}
    _check(data)
    splits = dict(train=data['train'], val=data.get('val'), test=data.get('test', data.get('val')))
    root = data.get('root') or ''
    if 'data_root' in cfg:
        cfg.data_root = os.path.join(root, '')
    classes = tuple(data.get('classes') or _categories(os.path.join(root, data['train'])))
    for name, ann_file in splits.items():
        if ann_file is None:
            cfg.update(dict.fromkeys(_PARTS[name]))
            continue
        images = data.get('images') or ''
        if isinstance(images, dict):
            like = 'val' if name == 'test' and 'test' not in data else name
            images = images.get(name, images.get(like, ''))
        loader = cfg.get(f'{name}_dataloader')
        if loader is None:
            raise UserError(f'data.{name}={ann_file!r}: the config has no {name}_dataloader to put it in')
        dataset = _innermost(loader.dataset, name)
        dataset.update(data_root=root, ann_file=ann_file, data_prefix=dict(img=images), metainfo=dict(classes=classes))
        for evaluator in _evaluators(cfg.get(f'{name}_evaluator')):
            if 'ann_file' in evaluator:
                evaluator.ann_file = os.path.join(root, ann_file)
    for key in ('batch_size', 'num_workers'):
        if key in data:
            cfg.train_dataloader[key] = data[key]
    if data.get('num_workers') == 0:
        cfg.train_dataloader.persistent_workers = False
    if 'scale' in data:
        for _, part in walk({key: cfg[key] for key in cfg}):  # variables, too: --cfg-options may change them further
            if isinstance(part, dict) and part.get('type') == 'Resize':
                part['scale'] = data['scale']
    for path, part in walk(cfg.get('model') or {}):
        if isinstance(part, dict) and 'num_classes' in part and 'rpn' not in path:
            part['num_classes'] = len(classes)
    return options


def is_short(data: Any) -> bool:
    """Whether `data` is this one and not mmdetection 2.x's, whose ``train`` is a dict."""
    return isinstance(data, dict) and isinstance(data.get('train'), str)


def _check(data: dict) -> None:
    for key in data:
        if key not in _KEYS:
            raise UserError(f'data has an unknown key {key!r}; it has {", ".join(_KEYS)}.{suggest(key, _KEYS)}')
    for key in ('root', 'train', 'val', 'test'):
        if not isinstance(data.get(key), (str, type(None))):
            raise UserError(f'data.{key}={data[key]!r}: a path is needed')
    if isinstance(data.get('classes'), str):
        raise UserError(f"data.classes={data['classes']!r}: names are needed, ({data['classes']!r},)")


def _categories(path: str) -> list[str]:
    try:
        names = [category['name'] for category in json.loads(Path(path).read_bytes())['categories']]
    except FileNotFoundError:
        raise MissingFile(f'no annotation file {path}; check root and train of data') from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path} has no list of categories ({error!r}): is it in COCO format?') from None
    return list(dict.fromkeys(names))


def _innermost(dataset: Any, name: str) -> Any:
    while 'dataset' in dataset:  # RepeatDataset and the like
        dataset = dataset.dataset
    if 'datasets' in dataset:
        raise UserError(f'data.{name}: {name}_dataloader.dataset joins several data sets; write their paths there, and '
                        'no data=dict(...)')
    return dataset


def _evaluators(evaluator: Any) -> Iterator[Any]:
    yield from evaluator if isinstance(evaluator, (list, tuple)) else [evaluator] if evaluator else []
