"""mmdetection's vocabulary where this project has less of it: what its configs may write, and has one meaning here.

A constructor shows what its class can do. An option of mmdetection's class that ours lacks stands in `OPTIONS`: when a
config is loaded it is dropped where its value changes nothing, and refused with any other.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from mmdet.config.errors import UserError

# mmdetection 2.x's keys, which nothing reads, and what took their place. Some may be variables of a config.
KEYS_OF_2X = {
    'data': 'train_dataloader, val_dataloader and test_dataloader', 'optimizer': 'optim_wrapper',
    'checkpoint_config': 'default_hooks.checkpoint', 'dist_params': 'env_cfg.dist_cfg',
    'evaluation': 'val_evaluator and train_cfg.val_interval', 'log_config': 'default_hooks.logger',
    'lr_config': 'param_scheduler', 'optimizer_config': 'optim_wrapper.clip_grad', 'resume_from': '--resume',
    'runner': 'train_cfg', 'total_epochs': 'train_cfg.max_epochs', 'workflow': 'train_cfg and val_cfg',
}  # fmt: skip

Rule = Callable[[dict], tuple[list | None, str]]  # of a part of a config: the values that change nothing, and why


def _only(*values: Any, why: str = '') -> Rule:
    return lambda cfg: (list(values), why)


def _unused(why: str) -> Rule:
    return lambda cfg: (None, why)


_LINEAR, _PLAIN_BOXES = _only(dict(type='Linear')), _only(False, why='boxes are plain tensors')
_NO_MAPS, _OWN_SIZE = _only(False, why='there are no semantic maps'), _unused('masks carry their own size')
_OF_STACK = _unused('of stacked_convs')

# class: {option: rule}; 'a.b' is the key b of the option a. An option that the constructor takes is left to it.
OPTIONS: dict[str, dict[str, Rule]] = {
    'ResNet': dict(
        deep_stem=_only(False),
        avg_down=_only(False),
        stem_channels=lambda cfg: ([None, cfg.get('base_channels', 64)], ''),
        plugins=_only(None),
    ),
    'DetDataPreprocessor': dict(
        pad_mask=_OWN_SIZE,
        mask_pad_value=_OWN_SIZE,
        pad_seg=_NO_MAPS,
        seg_pad_value=_unused('of pad_seg'),
        boxtype2tensor=_only(True, why='boxes are plain tensors'),
    ),
    'BatchFixedSizePad': dict(
        pad_mask=_OWN_SIZE, mask_pad_value=_OWN_SIZE, pad_seg=_NO_MAPS, seg_pad_value=_unused('of pad_seg')
    ),
    'RPNHead': dict(num_classes=_only(1, why='a proposal is an object or none')),
    'SSDVGG': dict(input_size=_only(None), l2_norm_scale=_only(None, why="it is SSDNeck's")),
    'SSDNeck': dict(use_depthwise=_only(False)),
    'SSDHead': dict(
        stacked_convs=_only(0),
        use_depthwise=_only(False),
        feat_channels=_OF_STACK,
        conv_cfg=_OF_STACK,
        norm_cfg=_OF_STACK,
        act_cfg=_OF_STACK,
    ),
    'ConvFCBBoxHead': dict(
        predict_box_type=_only('hbox', why='boxes are upright'),
        cls_predictor_cfg=_LINEAR,
        reg_predictor_cfg=_LINEAR,
    ),
    'FCNMaskHead': {
        'predictor_cfg': _only(dict(type='Conv')),
        'roi_feat_size': _unused('any size will do'),
        'loss_mask.class_weight': _only(None),
    },
    'CascadeRoIHead': dict(shared_head=_only(None, why='a shared head belongs to StandardRoIHead')),
    'SingleRoIExtractor': {
        'roi_layer.pool_mode': _only('avg'),
        'roi_layer.use_torchvision': _unused('it chooses a kernel, not a result'),
    },
    'AnchorGenerator': dict(centers=_only(None), use_box_type=_PLAIN_BOXES),
    'DeltaXYWHBBoxCoder': dict(
        add_ctr_clamp=_only(False), ctr_clamp=_unused('of add_ctr_clamp'), use_box_type=_PLAIN_BOXES
    ),
    'MaxIoUAssigner': dict(
        iou_calculator=_only(dict(type='BboxOverlaps2D')),
        perm_repeat_gt_cfg=_only(None),
        gpu_assign_thr=_unused('the matrix of overlaps is small enough'),
    ),
    'OHEMSampler': dict(loss_key=_only('loss_cls')),
    'VOCMetric': dict(scale_ranges=_only(None), proposal_nums=_unused('of the metric recall')),
    'LoadAnnotations': dict(
        with_seg=_NO_MAPS,
        box_type=_only('hbox', None, why='boxes are upright'),
        backend_args=_unused('of with_seg'),
        imdecode_backend=_unused('of with_seg'),
    ),
}


def adopt(cfg: Any, path: str = '') -> None:
    """Drop the options of `OPTIONS` from a config, or from a part of it at `path`, where they change nothing.

    Raises:
        UserError: an option whose value would change something; names its place, the class and what is supported.
    """
    if isinstance(cfg, dict) and 'type' in cfg:
        for base, option, rule in _rules(cfg['type']):
            _adopt_option(cfg, option, rule, base, path)
    if isinstance(cfg, (dict, list, tuple)):
        for key, value in list(cfg.items() if isinstance(cfg, dict) else enumerate(cfg)):
            adopt(value, f'{path}.{key}' if path else str(key))


def spell_out_offsets(optim_wrapper: Any) -> None:
    """`dcn_offset_lr_mult` of `paramwise_cfg` in a wrapper's config -> one of its `custom_keys`, in place.

    mmengine multiplies the learning rate of `conv_offset` in mmcv's classes alone, and says nothing where there are
    none.
    """
    paramwise = optim_wrapper.get('paramwise_cfg') if isinstance(optim_wrapper, dict) else None
    factor = paramwise.pop('dcn_offset_lr_mult', None) if isinstance(paramwise, dict) else None
    if factor is not None:
        paramwise['custom_keys'] = {'conv_offset': dict(lr_mult=factor), **(paramwise.get('custom_keys') or {})}


def adopt_when_built(cls: type) -> None:
    """Let a constructor drop and refuse the options of `OPTIONS`, too: a script may build what no tool has loaded."""
    build = cls.__init__

    @functools.wraps(build)
    def __init__(self, *args, **kwargs) -> None:
        for base, option, rule in _rules(cls):
            _adopt_option(kwargs, option, rule, base, '')
        build(self, *args, **kwargs)

    cls.__init__ = __init__


def _rules(kind: Any) -> Iterator[tuple[str, str, Rule]]:
    """(class, option, rule) for the class that a ``type`` names and those that it is based on."""
    from mmdet.registry import registered_class

    bases = getattr(registered_class(kind) if isinstance(kind, str) else kind, '__mro__', ())
    taken = {name for base in bases for name in inspect.signature(base.__init__).parameters}
    for base in bases:
        if base.__module__.startswith('mmdet.'):  # a user's class may be called like one of ours
            for option, rule in OPTIONS.get(base.__name__, {}).items():
                if option not in taken:
                    yield base.__name__, option, rule


def _adopt_option(cfg: dict, option: str, rule: Rule, owner: str, path: str) -> None:
    values, why = rule(cfg)
    node, (*parents, key) = cfg, option.split('.')
    for parent in parents:
        node = node.get(parent) if isinstance(node, dict) else None
    if not isinstance(node, dict) or key not in node:
        return
    if values is not None and node[key] not in values:
        place, given = f'{path}.{option}' if path else option, repr(node[key])
        given = given if len(given) < 80 else f'{given[:60]}...'
        needed = ' or '.join(map(repr, values))
        raise UserError(f'{place}={given}: {owner} supports {needed} alone' + (f'; {why}' if why else ''))
    del node[key]
