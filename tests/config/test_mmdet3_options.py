"""mmdetection's vocabulary: what is dropped because it changes nothing, and what is refused."""

import copy

import pytest
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from torch import nn

from mmdet.apis import init_detector
from mmdet.config import mmdet3
from mmdet.config.errors import UserError
from mmdet.config.load import adopt_vocabulary, load_config
from mmdet.config.mmdet3 import OPTIONS, adopt
from mmdet.layers import ConvModule
from mmdet.registry import MODELS, registered_class

FOUND = [(kind, option) for kind, options in OPTIONS.items() for option in options]


@pytest.mark.parametrize('kind, option', FOUND)
def test_no_constructor_takes_what_the_table_has(kind, option):
    """The table speaks of classes that there are, and of no option twice."""
    first = option.split('.')[0]
    taken = {name for _, name, _ in mmdet3._rules(registered_class(kind))}
    assert option in taken, f'{kind} takes {first} itself'


@pytest.mark.parametrize(
    'cfg, message',
    [
        (dict(type='ResNet', deep_stem=True), 'model.deep_stem=True: ResNet supports False alone'),
        (dict(type='ResNet', stem_channels=32), 'model.stem_channels=32: ResNet supports None or 64 alone'),
        (dict(type='ResNet', base_channels=8, stem_channels=64), 'stem_channels=64: ResNet supports None or 8 alone'),
        (dict(type='RPN', rpn_head=dict(type='RPNHead', num_classes=2)), 'model.rpn_head.num_classes=2: RPNHead'),
        (dict(type='Shared2FCBBoxHead', predict_box_type='rbox'), "predict_box_type='rbox': ConvFCBBoxHead supports"),
        (dict(type='FCNMaskHead', predictor_cfg=dict(type='DCN')), 'model.predictor_cfg='),
        (dict(type='FCNMaskHead', loss_mask=dict(class_weight=[0.5])), 'model.loss_mask.class_weight=[0.5]: FCNMask'),
        (dict(type='CascadeRoIHead', shared_head=dict(type='ResLayer')), 'a shared head belongs to StandardRoIHead'),
        (dict(x=[dict(type='AnchorGenerator', centers=[(0, 0)])]), 'model.x.0.centers=[(0, 0)]: AnchorGenerator'),
        (dict(type='DeltaXYWHBBoxCoder', add_ctr_clamp=True), 'model.add_ctr_clamp=True'),
        (dict(type='OHEMSampler', loss_key='loss_bbox'), "model.loss_key='loss_bbox'"),
        (dict(type='MaxIoUAssigner', perm_repeat_gt_cfg={}), 'model.perm_repeat_gt_cfg={}'),
        (dict(type='DetDataPreprocessor', pad_seg=True), 'pad_seg=True: DetDataPreprocessor supports False alone'),
        (dict(type='SingleRoIExtractor', roi_layer=dict(pool_mode='max')), "model.roi_layer.pool_mode='max'"),
        (dict(type='LoadAnnotations', box_type='rbox'), "box_type='rbox': LoadAnnotations supports 'hbox'"),
    ],
)
def test_what_would_change_something_is_refused(cfg, message):
    with pytest.raises(UserError) as error:
        adopt(cfg, 'model')
    assert message in str(error.value) and '\n' not in str(error.value)


def test_what_changes_nothing_is_dropped():
    """Every option of mmdetection's constructors, at the value that it has there."""
    loss = dict(type='CrossEntropyLoss', use_mask=True)
    cfg = [
        dict(type='ResNet', depth=18, stem_channels=None, deep_stem=False, avg_down=False, plugins=None),
        dict(type='DetDataPreprocessor', pad_mask=True, mask_pad_value=0, pad_seg=False, seg_pad_value=255,
             boxtype2tensor=True),
        dict(type='Shared4Conv1FCBBoxHead', predict_box_type='hbox',
             reg_predictor_cfg=dict(type='Linear'), cls_predictor_cfg=dict(type='Linear')),
        dict(type='FCNMaskHead', predictor_cfg=dict(type='Conv'), roi_feat_size=14,
             loss_mask=dict(loss, class_weight=None)),
        dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5, iou_calculator=dict(type='BboxOverlaps2D'),
             gpu_assign_thr=-1, perm_repeat_gt_cfg=None),
    ]  # fmt: skip
    adopt(cfg)
    assert cfg == [
        dict(type='ResNet', depth=18),
        dict(type='DetDataPreprocessor'),
        dict(type='Shared4Conv1FCBBoxHead'),
        dict(type='FCNMaskHead', loss_mask=loss),
        dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5),
    ]


def test_a_users_class_is_left_alone():
    """Also where it has the name of one of ours, or takes the option itself."""
    mine = type('ResNet', (nn.Module,), {})
    cfg = dict(type=mine, deep_stem=True)
    adopt(cfg)
    assert cfg == dict(type=mine, deep_stem=True)

    class Deep(MODELS.get('ResNet')):
        def __init__(self, deep_stem=False, **kwargs):
            super().__init__(**kwargs)

    cfg = dict(type=Deep, deep_stem=True, avg_down=False)
    adopt(cfg)
    assert cfg == dict(type=Deep, deep_stem=True)
    with pytest.raises(UserError, match='avg_down'):
        adopt(dict(type=Deep, avg_down=True))


def test_a_loaded_config_and_init_detector():
    path = 'configs/demo/mask_rcnn_r18_fpn_cbn_shapes.py'
    options = {'model.backbone.deep_stem': False, 'model.backbone.plugins': None}
    cfg = load_config(path, options)
    assert not {'deep_stem', 'plugins'} & set(cfg.model.backbone)
    other = copy.deepcopy(cfg)
    other.model.backbone.update(options, avg_down=False, init_cfg=None)
    other.model.backbone = {k: v for k, v in other.model.backbone.items() if '.' not in k}
    init_detector(other, device='cpu')
    other.model.backbone.avg_down = True
    with pytest.raises(UserError, match='model.backbone.avg_down=True: ResNet supports False alone'):
        init_detector(other, device='cpu')


def test_the_offsets_of_deformable_convolutions_learn_slower():
    """`dcn_offset_lr_mult`: both parameters of `conv_offset`, no other; bias_lr_mult is not theirs, as in mmengine."""
    model = nn.Sequential(*(ConvModule(4, 4, 3, conv_cfg=dict(type=kind), bias=True) for kind in ('DCN', 'DCNv2')))
    rates = dict(bias_lr_mult=2.0, dcn_offset_lr_mult=0.1)
    for own, factor in (None, 0.1), (dict(conv_offset=dict(lr_mult=0.5)), 0.5):
        paramwise = dict(rates, custom_keys=own) if own else dict(rates)
        wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1.0), paramwise_cfg=paramwise)
        cfg = Config(dict(optim_wrapper=wrapper))
        adopt_vocabulary(cfg)
        groups = build_optim_wrapper(model, cfg.optim_wrapper).param_groups
        learns = {id(parameter): group['lr'] for group in groups for parameter in group['params']}
        expected = {name: factor if 'conv_offset' in name else 2.0 if 'bias' in name else 1.0
                    for name, _ in model.named_parameters()}  # fmt: skip
        assert sorted(expected.values()) == sorted([factor] * 4 + [1.0] * 2 + [2.0] * 2)
        assert {name: learns[id(parameter)] for name, parameter in model.named_parameters()} == expected
