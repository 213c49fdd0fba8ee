"""detectron2: R-CNNs and RetinaNet with ResNet-FPN, and caffe2 backbones (R-50.pkl of its model zoo).

Background last and no rounding there as here. Two things differ: RetinaNet's anchors stand in another order, size
before ratio, and Cascade R-CNN has one mask head where ours has one for each stage.
"""

import re
from typing import Any

import torch
from torch import Tensor

from mmdet.checkpoints.names import Converted, Table, refuse_unknown, rename, together
from mmdet.config.errors import UserError

_BACKBONE: Table = [
    ('backbone.bottom_up.stem.conv1.norm.{p}', 'backbone.NORM1.{p}'),
    ('backbone.bottom_up.stem.conv1.{p}', 'backbone.conv1.{p}'),
]
for _stage in (1, 2, 3, 4):
    _old, _new = f'backbone.bottom_up.res{_stage + 1}.{{n}}', f'backbone.layer{_stage}.{{n}}'
    _BACKBONE += [(f'{_old}.conv{i}.norm.{{p}}', f'{_new}.NORM{i}.{{p}}') for i in (1, 2, 3)]
    _BACKBONE += [(f'{_old}.conv{i}.{{p}}', f'{_new}.conv{i}.{{p}}') for i in (1, 2, 3)]
    _BACKBONE += [
        (f'{_old}.shortcut.norm.{{p}}', f'{_new}.downsample.1.{{p}}'),
        (f'{_old}.shortcut.{{p}}', f'{_new}.downsample.0.{{p}}'),
    ]

_RPN: Table = [
    ('proposal_generator.rpn_head.conv.conv{n}.{p}', 'rpn_head.rpn_conv.{n}.conv.{p}'),
    ('proposal_generator.rpn_head.conv.{p}', 'rpn_head.rpn_conv.{p}'),
    ('proposal_generator.rpn_head.objectness_logits.{p}', 'rpn_head.rpn_cls.{p}'),
    ('proposal_generator.rpn_head.anchor_deltas.{p}', 'rpn_head.rpn_reg.{p}'),
]
_ROI: Table = []
for _part in ('', '.0', '.1', '.2'):  # the stages of Cascade R-CNN
    _new = f'roi_head.bbox_head{_part}'
    _ROI += [
        pair
        for i in (1, 2, 3, 4)
        for pair in (
            (f'roi_heads.box_head{_part}.fc{i}.{{p}}', f'{_new}.shared_fcs.{i - 1}.{{p}}'),
            (f'roi_heads.box_head{_part}.conv{i}.norm.{{p}}', f'{_new}.shared_convs.{i - 1}.NORM.{{p}}'),
            (f'roi_heads.box_head{_part}.conv{i}.{{p}}', f'{_new}.shared_convs.{i - 1}.conv.{{p}}'),
        )
    ]
    _ROI += [
        (f'roi_heads.box_predictor{_part}.cls_score.{{p}}', f'{_new}.fc_cls.{{p}}'),
        (f'roi_heads.box_predictor{_part}.bbox_pred.{{p}}', f'{_new}.fc_reg.{{p}}'),
    ]
for _i in (1, 2, 3, 4):
    _ROI += [
        (f'roi_heads.mask_head.mask_fcn{_i}.norm.{{p}}', f'roi_head.mask_head.convs.{_i - 1}.NORM.{{p}}'),
        (f'roi_heads.mask_head.mask_fcn{_i}.{{p}}', f'roi_head.mask_head.convs.{_i - 1}.conv.{{p}}'),
    ]
_ROI += [
    ('roi_heads.mask_head.deconv.{p}', 'roi_head.mask_head.upsample.{p}'),
    ('roi_heads.mask_head.predictor.{p}', 'roi_head.mask_head.conv_logits.{p}'),
]

_RETINA: Table = [
    ('head.cls_score.{p}', 'bbox_head.retina_cls.{p}'),
    ('head.bbox_pred.{p}', 'bbox_head.retina_reg.{p}'),
]
for _i in (0, 1, 2, 3):  # a ReLU stands between the convolutions
    _RETINA += [
        (f'head.cls_subnet.{2 * _i}.{{p}}', f'bbox_head.cls_convs.{_i}.conv.{{p}}'),
        (f'head.bbox_subnet.{2 * _i}.{{p}}', f'bbox_head.reg_convs.{_i}.conv.{{p}}'),
    ]

# Not weights: pixel_mean and pixel_std are the config's data_preprocessor, the anchors its anchor_generator.
NOT_WEIGHTS = re.compile(r'pixel_(mean|std)|(proposal_generator\.)?anchor_generator\.cell_anchors\.\d+')


def table(keys) -> Table:
    """The pairs (detectron2's name, our name); `NORM` in a name is 'bn' or 'gn' (see `norm_name`)."""
    first = 2 if 'backbone.fpn_lateral2.weight' in keys else 3
    fpn: Table = []
    for level in range(first, 6):
        index = level - first
        for old, new in (('lateral', 'lateral_convs'), ('output', 'fpn_convs')):
            fpn += [
                (f'backbone.fpn_{old}{level}.norm.{{p}}', f'neck.{new}.{index}.NORM.{{p}}'),
                (f'backbone.fpn_{old}{level}.{{p}}', f'neck.{new}.{index}.conv.{{p}}'),
            ]
    fpn += [(f'backbone.top_block.p{level}.{{p}}', f'neck.fpn_convs.{level - first}.conv.{{p}}') for level in (6, 7)]
    return _BACKBONE + fpn + _RPN + _ROI + _RETINA


def name_norms(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Replace `NORM`: a norm with running statistics is 'bn', one without is 'gn'."""
    batch_norms = {key.removesuffix('running_var') for key in state if key.endswith('running_var')}
    return {
        key.replace('.NORM', '.bn' if key.rpartition('.')[0] + '.' in batch_norms else '.gn'): value
        for key, value in state.items()
    }


def mask_head_for_each_stage(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Cascade R-CNN's one mask head under the names of one for each stage: their mean is what it says alone."""
    stages = [i for i in range(3) if f'roi_head.bbox_head.{i}.fc_cls.weight' in state]
    prefix = 'roi_head.mask_head.'
    if not stages:
        return state
    new = {key: value for key, value in state.items() if not key.startswith(prefix)}
    for key in state.keys() - new.keys():
        new.update({f'{prefix}{i}.{key.removeprefix(prefix)}': state[key] for i in stages})
    return new


def reorder_anchors(state: dict[str, Tensor], num_scales: int = 3) -> list[str]:
    """RetinaNet's outputs from size-major to ratio-major anchors, in place; returns the keys touched."""
    touched = [key for key in state if re.fullmatch(r'bbox_head\.retina_(cls|reg)\.(weight|bias)', key)]
    if not touched:
        return []
    num_anchors = len(state['bbox_head.retina_reg.bias']) // 4
    order = torch.arange(num_anchors).reshape(num_scales, -1).T.flatten()
    for key in touched:
        state[key] = state[key].unflatten(0, (num_anchors, -1))[order].flatten(0, 1)
    return touched


def convert(state: dict[str, Tensor], meta: dict[str, Any], num_classes: int | None) -> Converted | None:
    """A detector's weights; None where they are not of detectron2.

    Raises:
        UserError: a model without FPN, or keys without counterpart.
    """
    without_fpn = together(state, ('backbone.stem.conv1.',), ('backbone.res4.', 'roi_heads.res5.'))
    if without_fpn:
        raise UserError(f'a detectron2 model without FPN (C4 or DC5), which is not supported: it holds {without_fpn}')
    parts = ('backbone.fpn_', 'proposal_generator.', 'roi_heads.', 'head.cls_subnet.')
    evidence = together(state, ('backbone.bottom_up.',), parts)
    if not evidence:
        return None
    dropped = {key: 'not a weight' for key in state if NOT_WEIGHTS.fullmatch(key)}
    state = {key: value for key, value in state.items() if key not in dropped}
    renamed = rename(state, table(state))
    refuse_unknown('our models', renamed.unknown)
    named = name_norms(renamed.state)
    new = mask_head_for_each_stage(named)
    changed = dict(zip(state, named))
    if new.keys() != named.keys():
        changed = {old: name.replace('mask_head.', 'mask_head.{0,1,2}.') for old, name in changed.items()}
    return Converted(new, 'detectron2', evidence, changed, dropped, reorder_anchors(new))


# ---------------------------------------------------------------------- caffe2

_CAFFE2 = re.compile(r'(?:res_)?(?P<layer>conv1|res[2-5]_\d+_branch(?:1|2a|2b|2c))_(?P<part>w|[bg]n_\w+)')
_CAFFE2_PARTS = {
    's': 'weight', 'gamma': 'weight', 'b': 'bias', 'beta': 'bias', 'rm': 'running_mean', 'running_mean': 'running_mean',
    'riv': 'running_var', 'running_var': 'running_var',
}  # fmt: skip


def from_caffe2(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Backbone of a caffe2 file (conv1_w, res2_0_branch2a_bn_s, ...) under torchvision's ResNet names.

    A norm without statistics is an affine map into which they were folded: mean 0, variance 1 with the eps inside.

    Returns:
        the weights, and why each other key is left out.
    """
    new, dropped = {}, {}
    for key, value in state.items():
        match = _CAFFE2.fullmatch(key)
        norm, _, part = match['part'].partition('_') if match else ('', '', '')
        if match and norm == 'w':
            new[f'{_caffe2_layer(match["layer"], "conv", 0)}.weight'] = value
        elif match and part in _CAFFE2_PARTS:
            layer = _caffe2_layer(match['layer'], norm, 1)
            new[f'{layer}.{_CAFFE2_PARTS[part]}'] = value
            if key.endswith('bn_s') and f'{key[:-1]}rm' not in state:
                new[f'{layer}.running_mean'] = torch.zeros_like(value)
                new[f'{layer}.running_var'] = torch.full_like(value, 1 - 1e-5)
        elif key.startswith(('fc1000_', 'pred_', 'linear_')):
            dropped[key] = 'ImageNet classifier'
        elif key.endswith('_momentum'):
            dropped[key] = 'optimizer state'
        elif key == 'conv1_b':
            dropped[key] = 'a bias before a norm, unused in detectron2 too'
        else:
            dropped[key] = 'no part of a backbone'
    return new, dropped


def _caffe2_layer(layer: str, kind: str, place: int) -> str:
    """'res2_0_branch2a', 'conv' -> 'layer1.0.conv1'; `place` is the layer's number in a downsample branch."""
    if layer == 'conv1':
        return f'{kind}1'
    stage, block, branch = layer[3], layer.split('_')[1], layer.rpartition('branch')[2]
    block = f'layer{int(stage) - 1}.{block}'
    return f'{block}.downsample.{place}' if branch == '1' else f'{block}.{kind}{"abc".index(branch[1]) + 1}'


def convert_caffe2(state: dict[str, Tensor], meta: dict[str, Any], num_classes: int | None) -> Converted | None:
    """The same for a backbone with caffe2's names."""
    evidence = together(state, ('conv1_w',), ('res_conv1_', 'res2_', 'fpn_'))
    if not evidence:
        return None
    weights, dropped = from_caffe2(state)
    source = 'caffe2 backbone'
    if 'no part of a backbone' in dropped.values():
        source = 'backbone of a Caffe2 detector, whose other weights follow older conventions and stay out'
    return Converted({f'backbone.{key}': value for key, value in weights.items()}, source, evidence, {}, dropped)
