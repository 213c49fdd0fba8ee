"""detectron2: R-CNNs and RetinaNet with ResNet-FPN, and caffe2 backbones (R-50.pkl of its model zoo).

Background last and no rounding there as here. Only RetinaNet's anchors stand in another order, size before ratio.
"""

import re

import torch
from torch import Tensor

from mmdet.checkpoints.names import Table

_BACKBONE: Table = [
    ('backbone.bottom_up.stem.conv1.norm.{p}', 'backbone.bn1.{p}'),
    ('backbone.bottom_up.stem.conv1.{p}', 'backbone.conv1.{p}'),
]
for _stage in (1, 2, 3, 4):
    _old, _new = f'backbone.bottom_up.res{_stage + 1}.{{n}}', f'backbone.layer{_stage}.{{n}}'
    _BACKBONE += [(f'{_old}.conv{i}.norm.{{p}}', f'{_new}.bn{i}.{{p}}') for i in (1, 2, 3)]
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
        key.replace('.NORM.', '.bn.' if key.rpartition('.')[0] + '.' in batch_norms else '.gn.'): value
        for key, value in state.items()
    }


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


_CAFFE2 = re.compile(r'res(?P<stage>[2-5])_(?P<block>\d+)_branch(?P<branch>1|2a|2b|2c)_(?P<part>w|bn_s|bn_b)')
_CAFFE2_PARTS = {'w': 'conv', 'bn_s': 'bn', 'bn_b': 'bn'}


def from_caffe2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Backbone of a caffe2 file (conv1_w, res2_0_branch2a_bn_s, ...) under torchvision's ResNet names.

    Its norms are affine maps whose statistics were folded in: mean 0, variance 1 with the eps inside.
    """
    new = {}
    for key, value in state.items():
        if key == 'conv1_w':
            name, part = 'conv1', 'w'
        elif key in ('res_conv1_bn_s', 'res_conv1_bn_b'):
            name, part = 'bn1', key[-4:]
        elif match := _CAFFE2.fullmatch(key):
            part = match['part']
            block = f'layer{int(match["stage"]) - 1}.{match["block"]}'
            if match['branch'] == '1':
                name = f'{block}.downsample.{0 if part == "w" else 1}'
            else:
                name = f'{block}.{_CAFFE2_PARTS[part]}{"abc".index(match["branch"][1]) + 1}'
        else:
            continue  # the ImageNet classifier
        new[f'{name}.{"bias" if part == "bn_b" else "weight"}'] = value
        if part == 'bn_s':
            new[f'{name}.running_mean'] = torch.zeros_like(value)
            new[f'{name}.running_var'] = torch.full_like(value, 1 - 1e-5)
    return new
