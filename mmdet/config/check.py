"""Values of a config that its place decides, and parts that need one another, checked before anything is built.

mmengine and torch would meet them late (a wrong threshold after an epoch of training) or not at all, and name no place.
"""

import math
import re
from collections.abc import Callable
from typing import Any

from mmengine.config import Config

from mmdet.config.errors import UserError
from mmdet.config.load import has_mask_head, walk

_Check = tuple[Callable[[Any], bool], str]


def _whole(least: int) -> _Check:
    return lambda x: type(x) is int and x >= least, f'a whole number of at least {least} is needed'


def _number(low: float, high: float = math.inf) -> _Check:
    needed = f'a number of at least {low}' if high == math.inf else f'a number from {low} to {high}'
    return lambda x: type(x) in (int, float) and low <= x <= high, f'{needed} is needed'


_VALUES = [
    (r'(train|val|test)_(dataloader|cfg)|default_hooks', (
        lambda x: x is None or isinstance(x, dict), 'a dict is needed')),
    (r'(train|val|test)_dataloader\.batch_size', _whole(1)),
    (r'(train|val|test)_dataloader\.num_workers', _whole(0)),
    (r'train_cfg\.(max_epochs|max_iters|val_interval)', _whole(1)),
    (r'optim_wrapper\.accumulative_counts', _whole(1)),
    (r'optim_wrapper\.optimizer\.(lr|momentum|weight_decay)', _number(0)),
    (r'optim_wrapper\.clip_grad\.max_norm', _number(0)),
    (r'default_hooks\.logger\.interval', _whole(1)),
    (r'model(\.\w+)*\.num_classes', _whole(1)),
    (r'model(\.\w+)*\.anchor_generator\.(scales|ratios|strides)', (
        lambda x: x is None or isinstance(x, (list, tuple)) and len(x) > 0, 'a list of numbers is needed')),
    (r'model\.train_cfg(\.\w+)*\.sampler\.num', _whole(1)),
    (r'model\.train_cfg(\.\w+)*\.sampler\.pos_fraction', _number(0, 1)),
    (r'model\.(train|test)_cfg(\.\w+)*\.(score_thr|mask_thr_binary|iou_threshold)', _number(0, 1)),
    (r'model\.(train|test)_cfg(\.\w+)*\.nms\.type', (
        lambda x: x in ('nms', 'soft_nms'), "'nms' or 'soft_nms' is needed")),
    (r'model\.test_cfg\.rcnn\.mask_paste', (lambda x: x == 'resize', "'resize' is all it can be")),
]  # fmt: skip
_REMEDIES = {'val_interval': '. To train without validation set val_dataloader=None val_cfg=None val_evaluator=None'}
_PARTS = {
    'train': ('train_dataloader', 'train_cfg', 'optim_wrapper'),
    'val': ('val_dataloader', 'val_cfg', 'val_evaluator'),
    'test': ('test_dataloader', 'test_cfg', 'test_evaluator'),
}
# What our heads read of train_cfg and test_cfg and have no default for.
_DETECTIONS = ('score_thr', 'nms', 'max_per_img')
_NEEDED = {
    'RPNHead': dict(train_cfg=('assigner',), test_cfg=('nms', 'max_per_img')),
    'RetinaHead': dict(train_cfg=('assigner',), test_cfg=_DETECTIONS),
    'StandardRoIHead': dict(train_cfg=('assigner', 'sampler'), test_cfg=_DETECTIONS),
    'CascadeRoIHead': dict(train_cfg=('assigner', 'sampler'), test_cfg=_DETECTIONS),
}


def check_values(cfg: Config, training: bool) -> None:
    """Check numbers whose range their place decides, and that what training or testing needs is all there.

    Raises:
        UserError: names the place, the value, and what is needed.
    """
    whole = cfg.to_dict()
    for path, value in walk(whole):
        for pattern, (is_right, needed) in _VALUES:
            if re.fullmatch(pattern, path) and not is_right(value):
                raise UserError(f'{path}={value!r}: {needed}{_REMEDIES.get(path.rpartition(".")[2], "")}')
    if not isinstance(whole.get('custom_hooks') or [], (list, tuple)):
        raise UserError(f"custom_hooks={whole['custom_hooks']!r}: a list of hooks is needed, [dict(type='EMAHook')]")
    if not whole.get('model'):
        raise UserError('the config has no model')
    for phase in _PARTS if training else ('test',):
        _check_parts(whole, phase, needed=phase == 'train' or not training)
    wrapper = whole.get('optim_wrapper') or {}
    if training and not wrapper.get('optimizer') and 'constructor' not in wrapper:
        raise UserError("the config has no optim_wrapper.optimizer, such as dict(type='SGD', lr=0.02)")
    _check_model(whole['model'], ['train_cfg', 'test_cfg'] if training else ['test_cfg'])
    for phase in _PARTS if training else ('test',):
        dataset = (whole.get(f'{phase}_dataloader') or {}).get('dataset')
        _check_pipelines(dataset, f'{phase}_dataloader.dataset')
        _check_metrics(cfg, f'{phase}_evaluator')


def _check_parts(cfg: dict, phase: str, needed: bool) -> None:
    names = _PARTS[phase]
    missing = [name for name in names if cfg.get(name) is None]
    if missing and (needed or len(missing) < len(names)):
        word = dict(train='training', val='validation', test='testing')[phase]
        way_out = '' if needed else f'; or set all three to None, to do without {word}'
        raise UserError(f'the config has no {" and no ".join(missing)}: {word} needs {", ".join(names)}{way_out}')


def _check_model(model: dict, places: list[str]) -> None:
    """The heads read their part of train_cfg and test_cfg, late and without saying where it should have been."""
    parts = {'rpn_head': '.rpn', 'roi_head': '.rcnn', 'bbox_head': ''}
    for head, part in parts.items():
        for place in places if model.get(head) else ():
            cfg = model.get(place) or {}
            cfg = cfg.get(part[1:]) if part else cfg
            if not cfg:
                raise UserError(f'the config has no model.{place}{part}, which model.{head} needs; examples are in '
                                'configs/_base_/models')
            needed = _NEEDED.get(str(model[head].get('type')), {}).get(place, ())
            if needed and model[head].get('mask_head'):
                needed = *needed, dict(train_cfg='mask_size', test_cfg='mask_thr_binary')[place]
            for number, stage in enumerate(cfg if isinstance(cfg, (list, tuple)) else [cfg]):  # of a cascade
                where = f'model.{place}{part}' + (f'.{number}' if stage is not cfg else '')
                _check_needed(stage, needed, where, head)
    proposals = (model.get('train_cfg') or {}).get('rpn_proposal')
    if proposals and 'train_cfg' in places:
        _check_needed(proposals, ('nms', 'max_per_img'), 'model.train_cfg.rpn_proposal', 'rpn_head')


def _check_needed(cfg: dict, names: tuple[str, ...], path: str, head: str) -> None:
    missing = [name for name in names if name not in cfg]
    if missing:
        raise UserError(f'{path} has no {" and no ".join(missing)}, which model.{head} needs; examples are in '
                        'configs/_base_/models')


def _check_metrics(cfg: Config, path: str) -> None:
    evaluator, model = cfg.get(path) or {}, cfg.model
    if has_mask_head(cfg) or not (model.get('roi_head') or model.get('bbox_head')):
        return  # of a model without these heads nothing is known
    for part in evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]:
        metric = part.get('metric') or ()
        if 'segm' in ([metric] if isinstance(metric, str) else metric):
            raise UserError(f"{path}.metric={metric!r}: {model.get('type')} has no mask head here; use 'bbox'")


def _check_pipelines(dataset: dict | None, path: str) -> None:
    for key in ('dataset', 'datasets'):  # of RepeatDataset, ConcatDataset and the like
        inner = (dataset or {}).get(key) or ()
        for number, part in enumerate(inner if isinstance(inner, (list, tuple)) else [inner]):
            _check_pipelines(part, f'{path}.{key}' + (f'.{number}' if key == 'datasets' else ''))
    if dataset and dataset.get('type') == 'CocoDataset':
        steps = [step.get('type') for step in dataset.get('pipeline') or () if isinstance(step, dict)]
        if not any('Pack' in str(step) for step in steps):
            raise UserError(f"{path}.pipeline must end with dict(type='PackDetInputs'), its steps are {steps}")
