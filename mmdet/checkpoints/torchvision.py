"""torchvision.models.detection: Faster R-CNN, Mask R-CNN and RetinaNet with a ResNet-FPN, and SSD; both directions."""

from typing import Any

from torch import Tensor

from mmdet.checkpoints.classes import (
    add_background_column,
    background_first,
    background_last,
    drop_background_column,
    ssd_background_first,
    ssd_background_last,
)
from mmdet.checkpoints.names import Converted, Table, refuse_unknown, rename, reverse, together
from mmdet.config.errors import UserError

_PREFIX: Table = [('backbone.body.{rest}', 'backbone.{rest}')]

_FPN: Table = [
    ('backbone.fpn.inner_blocks.{n}.0.{p}', 'neck.lateral_convs.{n}.conv.{p}'),
    ('backbone.fpn.inner_blocks.{n}.1.{p}', 'neck.lateral_convs.{n}.bn.{p}'),
    ('backbone.fpn.layer_blocks.{n}.0.{p}', 'neck.fpn_convs.{n}.conv.{p}'),
    ('backbone.fpn.layer_blocks.{n}.1.{p}', 'neck.fpn_convs.{n}.bn.{p}'),
]

_RPN: Table = [
    ('rpn.head.cls_logits.{p}', 'rpn_head.rpn_cls.{p}'),
    ('rpn.head.bbox_pred.{p}', 'rpn_head.rpn_reg.{p}'),
]
_RPN_ONE_CONV: Table = [('rpn.head.conv.0.0.{p}', 'rpn_head.rpn_conv.{p}')]
_RPN_CONVS: Table = [('rpn.head.conv.{n}.0.{p}', 'rpn_head.rpn_conv.{n}.conv.{p}')]

_ROI: Table = [
    ('roi_heads.box_head.fc6.{p}', 'roi_head.bbox_head.shared_fcs.0.{p}'),
    ('roi_heads.box_head.fc7.{p}', 'roi_head.bbox_head.shared_fcs.1.{p}'),
    ('roi_heads.box_predictor.cls_score.{p}', 'roi_head.bbox_head.fc_cls.{p}'),
    ('roi_heads.box_predictor.bbox_pred.{p}', 'roi_head.bbox_head.fc_reg.{p}'),
    ('roi_heads.mask_head.{n}.0.{p}', 'roi_head.mask_head.convs.{n}.conv.{p}'),
    ('roi_heads.mask_head.{n}.1.{p}', 'roi_head.mask_head.convs.{n}.bn.{p}'),
    ('roi_heads.mask_predictor.conv5_mask.{p}', 'roi_head.mask_head.upsample.{p}'),
    ('roi_heads.mask_predictor.mask_fcn_logits.{p}', 'roi_head.mask_head.conv_logits.{p}'),
]
# The box head of the _v2 models is one Sequential: four convolutions with BN, Flatten, Linear, ReLU.
_ROI_V2: Table = [
    ('roi_heads.box_head.5.{p}', 'roi_head.bbox_head.shared_fcs.0.{p}'),
    ('roi_heads.box_head.{n}.0.{p}', 'roi_head.bbox_head.shared_convs.{n}.conv.{p}'),
    ('roi_heads.box_head.{n}.1.{p}', 'roi_head.bbox_head.shared_convs.{n}.bn.{p}'),
]

_RETINA: Table = [
    ('backbone.fpn.extra_blocks.p6.{p}', 'neck.fpn_convs.3.conv.{p}'),
    ('backbone.fpn.extra_blocks.p7.{p}', 'neck.fpn_convs.4.conv.{p}'),
    ('head.classification_head.conv.{n}.0.{p}', 'bbox_head.cls_convs.{n}.conv.{p}'),
    ('head.classification_head.conv.{n}.1.{p}', 'bbox_head.cls_convs.{n}.gn.{p}'),
    ('head.classification_head.cls_logits.{p}', 'bbox_head.retina_cls.{p}'),
    ('head.regression_head.conv.{n}.0.{p}', 'bbox_head.reg_convs.{n}.conv.{p}'),
    ('head.regression_head.conv.{n}.1.{p}', 'bbox_head.reg_convs.{n}.gn.{p}'),
    ('head.regression_head.bbox_reg.{p}', 'bbox_head.retina_reg.{p}'),
]

# What follows conv4_3 in the VGG, and what SSD adds, are the blocks of one list; layers count from a block's start.
_SSD: Table = [
    ('backbone.scale_weight', 'neck.l2_norm.weight'),
    ('backbone.extra.0.1.{p}', 'backbone.features.24.{p}'),
    ('backbone.extra.0.3.{p}', 'backbone.features.26.{p}'),
    ('backbone.extra.0.5.{p}', 'backbone.features.28.{p}'),
    ('backbone.extra.0.7.1.{p}', 'backbone.features.31.{p}'),
    ('backbone.extra.0.7.3.{p}', 'backbone.features.33.{p}'),
    *((f'backbone.extra.{n + 1}.0.{{p}}', f'neck.extra_layers.{n}.0.conv.{{p}}') for n in range(4)),
    *((f'backbone.extra.{n + 1}.2.{{p}}', f'neck.extra_layers.{n}.1.conv.{{p}}') for n in range(4)),
    ('backbone.features.{n}.{p}', 'backbone.features.{n}.{p}'),
    ('head.classification_head.module_list.{n}.{p}', 'bbox_head.cls_convs.{n}.0.{p}'),
    ('head.regression_head.module_list.{n}.{p}', 'bbox_head.reg_convs.{n}.0.{p}'),
]

# Names up to torchvision 0.12, which kept no norm beside these convolutions.
_OLD: Table = [
    ('backbone.fpn.inner_blocks.{n}.{p}', 'backbone.fpn.inner_blocks.{n}.0.{p}'),
    ('backbone.fpn.layer_blocks.{n}.{p}', 'backbone.fpn.layer_blocks.{n}.0.{p}'),
    ('rpn.head.conv.{p}', 'rpn.head.conv.0.0.{p}'),
    ('roi_heads.mask_head.mask_fcn1.{p}', 'roi_heads.mask_head.0.0.{p}'),
    ('roi_heads.mask_head.mask_fcn2.{p}', 'roi_heads.mask_head.1.0.{p}'),
    ('roi_heads.mask_head.mask_fcn3.{p}', 'roi_heads.mask_head.2.0.{p}'),
    ('roi_heads.mask_head.mask_fcn4.{p}', 'roi_heads.mask_head.3.0.{p}'),
]
_OLD_RETINA_CONVS = {'0': 0, '2': 1, '4': 2, '6': 3}  # a ReLU stood between them


def modern_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict under the names that torchvision 0.13 and later use."""
    if 'head.classification_head.conv.0.weight' in state:
        renamed = {}
        for key, value in state.items():
            parts = key.split('.')
            if parts[0] == 'head' and parts[2] == 'conv':
                key = '.'.join([*parts[:3], str(_OLD_RETINA_CONVS[parts[3]]), '0', parts[4]])
            renamed[key] = value
        state = renamed
    old, _, unknown = rename(state, _OLD)
    return {**{key: state[key] for key in unknown}, **old}


def table(ours: bool, keys) -> Table:
    """The pairs (torchvision's name, our name) for a model with these `keys`, spelled our way if `ours`."""
    if ('neck.l2_norm.weight' if ours else 'backbone.scale_weight') in keys:
        return _SSD
    if ('bbox_head.retina_cls.weight' if ours else 'head.classification_head.cls_logits.weight') in keys:
        return _RETINA + _FPN + _PREFIX
    two_convs = ('rpn_head.rpn_conv.0.conv.weight' if ours else 'rpn.head.conv.1.0.weight') in keys
    v2 = ('roi_head.bbox_head.shared_convs.0.conv.weight' if ours else 'roi_heads.box_head.0.0.weight') in keys
    rpn = _RPN + (_RPN_CONVS if two_convs else _RPN_ONE_CONV)
    return _FPN + rpn + (_ROI_V2 if v2 else []) + _ROI + _PREFIX


def convert(state: dict[str, Tensor], meta: dict[str, Any], num_classes: int | None) -> Converted | None:
    """A detector's weights; None where they are not of torchvision."""
    parts = ('backbone.fpn.', 'rpn.head.', 'roi_heads.', 'head.classification_head.')
    evidence = together(state, ('backbone.body.',), parts)
    evidence = evidence or together(state, ('backbone.scale_weight',), ('head.classification_head.module_list.',))
    if not evidence:
        return None
    given = set(state)
    state = modern_keys(state)
    renamed = rename(state, table(False, state))
    new = dict(renamed.state)
    refuse_unknown('our models', renamed.unknown)
    reordered = background_last(new, num_classes) + ssd_background_last(new, num_classes)
    kind = 'Faster R-CNN'
    if 'bbox_head.retina_reg.weight' in new:
        kind = 'RetinaNet'
        reordered += drop_background_column(new, len(new['bbox_head.retina_reg.weight']) // 4, num_classes)
    elif 'neck.l2_norm.weight' in new:
        kind = 'SSD'
    elif 'roi_head.mask_head.upsample.weight' in new:
        kind = 'Mask R-CNN'
    changed = {old: name for old, name in renamed.changed.items() if old in given}
    return Converted(new, f'torchvision {kind}', evidence, changed, {}, reordered)


def to_torchvision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our weights of Faster R-CNN, Mask R-CNN, RetinaNet or SSD300 under torchvision's names, background first.

    The model to load them has ``num_classes=C + 1``.

    Raises:
        UserError: names keys that have no place there.
    """
    state = dict(state)
    if any(key.startswith('roi_head.bbox_head.0.') for key in state):
        raise UserError('torchvision has no Cascade R-CNN')
    background_first(state)
    ssd_background_first(state)
    if 'bbox_head.retina_reg.weight' in state:
        add_background_column(state, len(state['bbox_head.retina_reg.weight']) // 4)
    renamed = rename(state, reverse(table(True, state)))
    refuse_unknown('torchvision', renamed.unknown)
    return renamed.state


def convert_backbone(state: dict[str, Tensor], meta: dict[str, Any], num_classes: int | None) -> Converted | None:
    """The same for a ResNet that classifies."""
    evidence = together(state, ('conv1.weight',), ('layer1.0.conv1.weight',))
    if not evidence:
        return None
    dropped = {key: 'ImageNet classifier' for key in state if key.startswith('fc.')}
    changed = {key: f'backbone.{key}' for key in state if key not in dropped}
    new = {name: state[key] for key, name in changed.items()}
    return Converted(new, 'ResNet backbone (torchvision names)', evidence, changed, dropped)
