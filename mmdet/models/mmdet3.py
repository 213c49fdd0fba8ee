"""mmdetection 3's parts, for code that was written for them; nothing of this project needs this module.

mmdetection keeps every argument of a constructor under its name, and some values that follow from them: importing this
module lets ours be read in the same way, from one table. And its detectors call their heads with data samples: whoever
does so with ours is told what to call.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from mmengine.structures import BaseDataElement
from torch import nn
from torch.nn.modules.utils import _pair

from mmdet.config.errors import UserError
from mmdet.config.mmdet3 import OPTIONS, adopt_when_built
from mmdet.models import backbones, dense_heads, detectors, necks, roi_heads, task_modules
from mmdet.models.backbones.resnet import Block
from mmdet.registry import MODELS, TASK_UTILS

Read = Callable[[Any], Any]


def _nth_norm(number: int) -> Read:
    return lambda block: getattr(block, block.norm_names[number - 1])


_DENSE: dict[str, Read] = dict(
    prior_generator=lambda head: head.anchor_generator,
    num_base_priors=lambda head: len(head.anchor_generator.base_anchors[0]),
    num_anchors=lambda head: len(head.anchor_generator.base_anchors[0]),
    use_sigmoid_cls=lambda head: head.cls_out_channels == getattr(head, 'num_classes', 1),
    sampling=lambda head: not isinstance(head.sampler, task_modules.PseudoSampler),
)
_ROI: dict[str, Read] = dict(
    with_bbox=lambda head: head.bbox_head is not None,
    with_mask=lambda head: head.mask_head is not None,
    with_shared_head=lambda head: getattr(head, 'shared_head', None) is not None,
)
# class: {name in mmdetection: how it is found}
_READ: dict[type, dict[str, Read]] = {
    Block: dict(
        {f'norm{number}': _nth_norm(number) for number in (1, 2, 3)}, relu=lambda block: nn.ReLU(inplace=True)
    ),
    backbones.ResNet: dict(
        norm1=lambda net: getattr(net, net.norm1_name),
        res_layers=lambda net: net.stages,
        stem_channels=lambda net: net.base_channels,
        block=lambda net: net.arch_settings[net.depth][0],
        stage_blocks=lambda net: net.arch_settings[net.depth][1][: len(net.stages)],
        feat_dim=lambda net: net.block.expansion * net.base_channels * 2 ** (len(net.stages) - 1),
        inplanes=lambda net: net.feat_dim,
        deep_stem=lambda net: False,
        avg_down=lambda net: False,
        plugins=lambda net: None,
    ),
    necks.FPN: dict(num_ins=lambda neck: len(neck.in_channels)),
    necks.BFP: {},
    roi_heads.SingleRoIExtractor: dict(num_inputs=lambda extractor: len(extractor.scales)),
    roi_heads.ConvFCBBoxHead: dict(
        roi_feat_size=lambda head: _pair(_argument(head, 'roi_feat_size')),
        roi_feat_area=lambda head: head.roi_feat_size[0] * head.roi_feat_size[1],
        shared_out_channels=lambda head: _width(head, 'shared', head.in_channels),
        cls_last_dim=lambda head: head.fc_cls.in_features,
        reg_last_dim=lambda head: head.fc_reg.in_features,
        relu=lambda head: nn.ReLU(inplace=True),
        avg_pool=lambda head: nn.AvgPool2d(head.roi_feat_size),
        custom_cls_channels=lambda head: False,
        custom_activation=lambda head: False,
        custom_accuracy=lambda head: False,
        cls_predictor_cfg=lambda head: dict(type='Linear'),
        reg_predictor_cfg=lambda head: dict(type='Linear'),
    ),
    roi_heads.FCNMaskHead: dict(relu=lambda head: nn.ReLU(inplace=True), predictor_cfg=lambda head: dict(type='Conv')),
    roi_heads.StandardRoIHead: dict(
        _ROI,
        bbox_assigner=lambda head: getattr(head, 'assigner', None),
        bbox_sampler=lambda head: getattr(head, 'sampler', None),
    ),
    roi_heads.CascadeRoIHead: dict(
        _ROI,
        bbox_assigner=lambda head: getattr(head, 'assigners', None),
        bbox_sampler=lambda head: getattr(head, 'samplers', None),
    ),
    dense_heads.RPNHead: dict(_DENSE, cls_out_channels=lambda head: 2 if head.softmax else 1),
    dense_heads.RetinaHead: dict(
        _DENSE, cls_out_channels=lambda head: head.num_classes, relu=lambda head: nn.ReLU(inplace=True)
    ),
    dense_heads.SSDHead: dict(
        _DENSE, cls_out_channels=lambda head: head.num_classes + 1,
        num_base_priors=lambda head: head.anchor_generator.num_base_priors,
    ),
    detectors.TwoStageDetector: dict(
        with_roi_head=lambda model: True, with_shared_head=lambda model: model.roi_head.with_shared_head
    ),
    detectors.SingleStageDetector: dict(with_shared_head=lambda model: False),
    task_modules.AnchorGenerator: dict(
        num_levels=lambda anchors: len(anchors.strides),
        num_base_priors=lambda anchors: [len(level) for level in anchors.base_anchors],
    ),
    task_modules.RandomSampler: dict(pos_fraction=lambda sampler: sampler.num_positive / sampler.num),
}


class _Found:
    """What an object has by itself comes first: it is no property, so that a subclass may set the attribute."""

    def __init__(self, name: str, read: Read) -> None:
        self.name, self.read = name, read

    def __get__(self, part: Any, owner: type | None = None) -> Any:
        if part is None:
            return self
        for kind in ('_modules', '_parameters', '_buffers'):
            own = vars(part).get(kind, {})
            if self.name in own:
                return own[self.name]
        return self.read(part)


def _argument(part: Any, name: str) -> Any:
    try:
        return vars(part)['_arguments'][name]
    except KeyError:
        raise AttributeError(f'{type(part).__name__!r} object has no attribute {name!r}') from None


def _width(head: nn.Module, branch: str, otherwise: int) -> int:
    """Values of a position, or of a RoI, that a branch of a box head ends in."""
    layers = [*getattr(head, f'{branch}_convs'), *getattr(head, f'{branch}_fcs')]
    if not layers:
        return otherwise
    return layers[-1].out_features if isinstance(layers[-1], nn.Linear) else layers[-1].conv.out_channels


def _remember(cls: type) -> None:
    """Let the constructor keep what it is given."""
    build = cls.__init__
    signature = inspect.signature(build)

    @functools.wraps(build)
    def __init__(self, *args, **kwargs) -> None:
        try:
            given = signature.bind(self, *args, **kwargs)
        except TypeError:
            pass  # it says so itself
        else:
            given.apply_defaults()
            del given.arguments['self']
            vars(self)['_arguments'] = given.arguments
        build(self, *args, **kwargs)

    cls.__init__ = __init__


# Heads of heads and detectors build their arguments, and are asked for what was built.
_KEEP = (backbones.ResNet, necks.FPN, necks.BFP, roi_heads.SingleRoIExtractor, roi_heads.ConvFCBBoxHead,
         roi_heads.FCNMaskHead, dense_heads.RPNHead, dense_heads.RetinaHead)  # fmt: skip
for _cls, _names in _READ.items():
    if _cls in _KEEP:
        _remember(_cls)
        _names = {name: functools.partial(_argument, name=name) for name in inspect.signature(_cls).parameters} | _names
    for _name, _read in _names.items():
        if not hasattr(_cls, _name):
            setattr(_cls, _name, _Found(_name, _read))


# What mmdetection calls with data samples, where ours get plain tensors, and what does the same here.
_AS = 'proposals [(P, 4)] and {}, as in TwoStageDetector.{}'
_DENSE_CALLS = dict(loss='head(features) and targets, as in SingleStageDetector.loss',
                    predict='head(features) and metas, as in SingleStageDetector.predict')  # fmt: skip
_ROI_CALLS = dict(loss=_AS.format('targets', 'loss'), predict=_AS.format('metas', 'predict'))
_INSTEAD: dict[type, dict[str, str]] = {
    dense_heads.RPNHead: dict(loss='training_proposals(features, data_samples, targets) of the detector',
                              predict='proposals(features, data_samples) of the detector'),
    dense_heads.RetinaHead: _DENSE_CALLS,
    dense_heads.SSDHead: _DENSE_CALLS,
    roi_heads.StandardRoIHead: _ROI_CALLS,
    roi_heads.CascadeRoIHead: _ROI_CALLS,
}  # fmt: skip


def _tell(cls: type, name: str, instead: str) -> None:
    ours = getattr(cls, name)

    @functools.wraps(ours)
    def method(self, *args, **kwargs):
        for given in args:
            if isinstance(given, (list, tuple)) and given and isinstance(given[0], BaseDataElement):
                raise UserError(
                    f'{type(self).__name__}.{name} is given a list of {type(given[0]).__name__}, as in mmdetection, '
                    f'and takes plain tensors: use {instead} (docs/extend/head.md)'
                )
        return ours(self, *args, **kwargs)

    # any arguments: it says itself what is wrong with them
    method.__signature__ = inspect.signature(lambda self, *args, **kwargs: None)
    setattr(cls, name, method)


for _cls, _calls in _INSTEAD.items():
    for _name, _text in _calls.items():
        _tell(_cls, _name, _text)


# Keywords of mmdetection's methods that ours lack: method, keyword, what changes nothing, and what to do otherwise.
_KEYWORDS: dict[type, tuple[str, str, tuple, str]] = {
    task_modules.AnchorGenerator: (
        'grid_priors', 'dtype', (None, torch.float32), 'anchors are float32; convert what it gives'),
    task_modules.DeltaXYWHBBoxCoder: (
        'decode', 'max_shape', (None,), 'clip the boxes by clip(boxes, image_shape) of the coder'),
    **dict.fromkeys(
        {cls for cls in MODELS.module_dict.values() if cls.__module__.startswith('mmdet.layers.losses')},
        ('forward', 'reduction_override', (None,), 'a loss is the sum over avg_factor, or the mean'),
    ),
}  # fmt: skip


def _take(cls: type, name: str, keyword: str, without_effect: tuple, otherwise: str) -> None:
    ours = getattr(cls, name)

    @functools.wraps(ours)
    def method(self, *args, **kwargs):
        if keyword in kwargs and kwargs.pop(keyword) not in without_effect:
            raise UserError(f'{type(self).__name__}.{name} takes no {keyword} here: {otherwise} (docs/extend/head.md)')
        return ours(self, *args, **kwargs)

    setattr(cls, name, method)


for _cls, _keyword in _KEYWORDS.items():
    _take(_cls, *_keyword)

for _name in OPTIONS:
    for _registry in (MODELS, TASK_UTILS):
        if _name in _registry.module_dict:
            adopt_when_built(_registry.module_dict[_name])
