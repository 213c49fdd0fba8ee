"""mmdetection 0.x and 1.x: names without `roi_head.`, background first, and other conventions of boxes.

Their models measured a box from x1 to x2 as x2 - x1 + 1 pixels wide, rounded anchors, pooled without a half-cell
shift and pasted masks by resizing. Each convention is an option of a type in the config; `OPTIONS` says which.
"""

import inspect
from typing import Any

from mmengine.config import Config
from torch import Tensor

from mmdet.checkpoints.classes import background_last, object_first, ssd_background_last
from mmdet.checkpoints.names import OFFSETS, SSD, Converted, Table, rename
from mmdet.checkpoints.plain import is_marked
from mmdet.config.errors import at_most
from mmdet.config.values import predicted_fields
from mmdet.registry import MODELS

TABLE: Table = [
    ('bbox_head.{rest}', 'roi_head.bbox_head.{rest}'),
    ('mask_head.{rest}', 'roi_head.mask_head.{rest}'),
    ('bbox_roi_extractor.{rest}', 'roi_head.bbox_roi_extractor.{rest}'),
    ('mask_roi_extractor.{rest}', 'roi_head.mask_roi_extractor.{rest}'),
    ('shared_head.{rest}', 'roi_head.shared_head.{rest}'),
    *OFFSETS,
    ('{rest}', '{rest}'),
]

# The options that every object of a type gets, wherever it stands in the model's config.
OPTIONS: dict[str, dict[str, Any]] = {
    'AnchorGenerator': dict(rounded=True, offset=1.0),
    'SSDAnchorGenerator': dict(rounded=True, offset=1.0),
    'DeltaXYWHBBoxCoder': dict(offset=1.0),
    'MaxIoUAssigner': dict(offset=1.0),
    'RoIAlign': dict(legacy=True, sampling_ratio=2),
    'nms': dict(offset=1.0),
    'soft_nms': dict(offset=1.0),
    'Resize': dict(common_factor=True),
    'CocoMetric': dict(offset=1.0),
    'VOCMetric': dict(offset=1.0),
}
TEST_RPN = dict(nms_pre=2000, max_per_img=2000)
TEST_RCNN = dict(mask_paste='resize')

_CBN_EPS = 1e-5


def recognise(state: dict[str, Tensor], meta: dict[str, Any]) -> str | None:
    """What shows that the weights follow these conventions; None where nothing does.

    `meta` names the version, or says that `tools/convert_checkpoint.py` has renamed the keys. A file without it is
    known by an R-CNN's head at the top whose outputs, of these shapes, count the background.
    """
    version = str(meta.get('mmdet_version', ''))
    if meta.get('conventions') == 'mmdet1':
        return 'conventions=mmdet1 in its meta'
    if is_marked(meta):
        return None
    if version:
        old = 'mmcv_version' in meta and version.startswith(('0.', '1.'))
        return f'mmdet_version={version} in its meta' if old else None
    for head in ('bbox_head', 'bbox_head.0'):
        keys = [f'{head}.{layer}.weight' for layer in ('shared_fcs.0', 'fc_cls', 'fc_reg')]
        if state.keys() >= set(keys) and not any(key.startswith('roi_head.') for key in state):
            _, classes, deltas = (state[key].shape for key in keys)
            agnostic = deltas[0] == 4 and 'rpn_head.rpn_cls.weight' in state
            if deltas[1:] == classes[1:] and (agnostic or deltas[0] == 4 * classes[0]):
                return f'{at_most(keys)} and their shapes'
    return None


def convert(state: dict[str, Tensor], meta: dict[str, Any], num_classes: int | None) -> Converted | None:
    """A detector's weights; None where they are not of these versions."""
    evidence = recognise(state, meta)
    if not evidence:
        return None
    version = meta.get('mmdet_version', '0.x / 1.x')
    two_stages = any(key.startswith(('bbox_head.fc_', 'bbox_head.0.', 'mask_head.')) for key in state)
    renamed = rename(state, TABLE if two_stages else [*OFFSETS, *SSD, ('{rest}', '{rest}')])
    state, changed = renamed.state, renamed.changed
    reordered = background_last(state) + ssd_background_last(state) + object_first(state) + move_eps_inside(state)
    return Converted(state, f'mmdetection {version}', evidence, changed, {}, reordered)


def move_eps_inside(state: dict[str, Tensor]) -> list[str]:
    """Let CBN layers of the method's release, which divide by sqrt(var) + eps, divide by sqrt(var + eps).

    The scale takes up the difference, exactly for the file's statistics. Only these layers lack
    `num_batches_tracked`. Returns the keys touched.
    """
    touched = []
    for key in state:
        if key.endswith('.running_var') and not key.startswith('backbone.'):
            norm = key.removesuffix('running_var')
            if norm + 'num_batches_tracked' not in state:
                var = state[key].double()
                weight = state[norm + 'weight']
                factor = (var + _CBN_EPS).sqrt() / (var.sqrt() + _CBN_EPS)
                state[norm + 'weight'] = (weight.double() * factor).to(weight.dtype)
                touched.append(norm + 'weight')
    return touched


def apply_options(cfg: Config) -> dict[str, Any]:
    """Set the options in a config, in place; returns what changed, 'model.rpn_head...rounded': True."""
    changed: dict[str, Any] = {}
    _walk(cfg.model, 'model', changed)
    test_cfg = cfg.model.get('test_cfg') or {}
    for key, options in (('rpn', TEST_RPN), ('rcnn', TEST_RCNN)):
        if test_cfg.get(key) is not None and (key == 'rpn' or 'masks' in (predicted_fields(cfg.model) or ())):
            _set(test_cfg[key], options, f'model.test_cfg.{key}', changed)
    for key in ('test_dataloader', 'test_evaluator', 'val_dataloader', 'val_evaluator'):
        if cfg.get(key) is not None:
            _walk(cfg[key], key, changed)
    return changed


def _walk(node: Any, path: str, changed: dict[str, Any]) -> None:
    if isinstance(node, (list, tuple)):
        for index, item in enumerate(node):
            _walk(item, f'{path}.{index}', changed)
    elif isinstance(node, dict):
        _fill_defaults(node)
        _set(node, OPTIONS.get(node.get('type'), {}), path, changed)
        for key, value in node.items():
            _walk(value, f'{path}.{key}', changed)


def _fill_defaults(node: dict) -> None:
    """Write a head's default anchors and box coder into its config, so that they can take options."""
    if not str(node.get('type', '')).endswith('Head'):
        return
    for cls in inspect.getmro(MODELS.get(node['type'])):
        for name in ('anchor_generator', 'bbox_coder'):
            parameter = inspect.signature(cls).parameters.get(name)
            if parameter is not None and isinstance(parameter.default, dict) and name not in node:
                node[name] = dict(parameter.default)


def _set(node: dict, options: dict, path: str, changed: dict[str, Any]) -> None:
    for key, value in options.items():
        if node.get(key) != value:
            node[key] = value
            changed[f'{path}.{key}'] = value
