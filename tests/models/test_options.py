"""Options of mmdet 3's vocabulary: what acts, and what is refused in one line."""

import math

import factories
import pytest
import torch
from torch import nn

from mmdet.config.errors import UserError
from mmdet.config.mmdet3 import adopt
from mmdet.layers import ConvModule, ConvWS2d
from mmdet.models import init_weights
from mmdet.registry import METRICS, MODELS, TASK_UTILS

FPN = dict(type='FPN', in_channels=[8, 16], out_channels=8, num_outs=2)
RPN = dict(type='RPNHead', in_channels=8, feat_channels=8)
RETINA = dict(type='RetinaHead', num_classes=3, in_channels=8, feat_channels=8)
BOX_HEAD = dict(type='Shared2FCBBoxHead', in_channels=8, fc_out_channels=8, num_classes=3)
MASK_HEAD = dict(type='FCNMaskHead', in_channels=8, conv_out_channels=8, num_classes=3)
ANCHORS = dict(type='AnchorGenerator', strides=[4], ratios=[1.0], scales=[8])
ROI_HEAD = dict(
    type='StandardRoIHead',
    bbox_roi_extractor=dict(
        type='SingleRoIExtractor',
        roi_layer=dict(type='RoIAlign', output_size=7),
        out_channels=8,
        featmap_strides=[4, 8],
    ),
    bbox_head=BOX_HEAD,
)


@pytest.mark.parametrize(
    'cfg, message',
    [
        (dict(FPN, upsample_cfg=dict(scale_factor=2, mode='nearest')), 'FPN: upsample_cfg'),
        (dict(FPN, conv_cfg=dict(type='DCNN')), "unknown type 'DCNN'. Did you mean DCN? There are Conv2d, Conv, Conv"),
        (dict(RPN, train_cfg=dict(assignr={})), "train_cfg.rpn has no key 'assignr'. Did you mean assigner?"),
        (dict(RETINA, test_cfg=dict(score_thresh=0.1)), "test_cfg has no key 'score_thresh'. Did you mean score_thr?"),
        (dict(BOX_HEAD, loss_bbox=dict(type='L1Loss', reduction='sum')), "L1Loss: reduction='sum'"),
        (dict(BOX_HEAD, loss_cls=dict(type='CrossEntropyLoss', ignore_index=5)), 'ignore_index'),
        (dict(MASK_HEAD, upsample_cfg=dict(type='carafe')), "upsample_cfg={'type': 'carafe'}: unknown type 'carafe'"),
        (dict(MASK_HEAD, upsample_cfg=None), "upsample_cfg=None must be a dict with a 'type'"),
        (dict(ROI_HEAD, test_cfg=dict(score_thr=0.1, mask_thr=0.5)), "test_cfg.rcnn has no key 'mask_thr'"),
        (dict(ANCHORS, strides=[(4, 8)]), 'AnchorGenerator: strides=[(4, 8)] must be numbers'),
        (dict(ANCHORS, octave_base_scale=4, scales_per_octave=3), 'AnchorGenerator: scales exclude octave_base_scale'),
        (dict(type='CombinedSampler', num=9, pos_fraction=0.5, pos_sampler=dict(type='OHEMSampler'),
              neg_sampler=dict(type='RandomSampler')), 'CombinedSampler: OHEMSampler chooses by losses'),
        (dict(type='DetDataPreprocessor', mean=[1.0], std=[1.0, 2.0]), '1 values of mean, 2 of std'),
    ],
)  # fmt: skip
def test_what_cannot_act_is_refused_in_one_line(cfg, message):
    registry = TASK_UTILS if TASK_UTILS.get(cfg['type']) else MODELS
    with pytest.raises(ValueError) as error:
        registry.build(cfg)
    assert message in str(error.value) and '\n' not in str(error.value)


def test_defaults_of_mmdet3_may_be_written_out():
    """Every option of its constructors, at the value that they have there; `adopt` drops those that ours lack."""
    common = dict(conv_cfg=None, norm_cfg=None)
    losses = dict(
        loss_cls=dict(
            type='CrossEntropyLoss', use_sigmoid=False, use_mask=False, reduction='mean', class_weight=None,
            ignore_index=None, loss_weight=1.0, avg_non_ignore=False,
        ),
        loss_bbox=dict(type='SmoothL1Loss', beta=1.0, reduction='mean', loss_weight=1.0),
    )  # fmt: skip
    focal = dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, reduction='mean', activated=False)
    cfgs = [
        dict(BOX_HEAD, **common, **losses, with_avg_pool=False, with_cls=True, with_reg=True, roi_feat_size=(7, 7),
             predict_box_type='hbox', reg_class_agnostic=False, reg_decoded_bbox=False, init_cfg=None,
             reg_predictor_cfg=dict(type='Linear'), cls_predictor_cfg=dict(type='Linear')),
        dict(MASK_HEAD, **common, predictor_cfg=dict(type='Conv'), init_cfg=None, roi_feat_size=14),
        dict(FPN, **common, act_cfg=None, upsample_cfg=dict(mode='nearest'),
             init_cfg=dict(type='Xavier', layer='Conv2d', distribution='uniform')),
        dict(type='ResNet', depth=18, stem_channels=None, deep_stem=False, avg_down=False, conv_cfg=None, dcn=None,
             stage_with_dcn=(False, False, False, False), plugins=None, with_cp=False, init_cfg=None),
        dict(RETINA, **common, loss_cls=focal, init_cfg=dict(type='Normal', layer='Conv2d', std=0.01)),
        dict(type='DetDataPreprocessor', pad_mask=False, mask_pad_value=0, pad_seg=False, seg_pad_value=255,
             rgb_to_bgr=False, boxtype2tensor=True, non_blocking=False, batch_augments=None),
    ]  # fmt: skip
    adopt(cfgs)
    for cfg in cfgs:
        MODELS.build(cfg)


@pytest.mark.parametrize('name', ['rpn', 'retinanet'])
def test_no_limit_of_boxes_keeps_all(make_data, name):
    model = factories.build(factories.small_cfg(name, num_classes=None)).eval()
    test_cfg = (model.rpn_head if name == 'rpn' else model.bbox_head).test_cfg
    found = []
    for limit in (-1, 10**6):
        test_cfg.update(nms_pre=limit, max_per_img=limit, score_thr=0.0)
        found.append(model.test_step(make_data([1]))[0].pred_instances)
    assert torch.equal(found[0].bboxes, found[1].bboxes) and len(found[0]) > 100


def test_init_cfg_acts():
    head = MODELS.build(dict(RPN, init_cfg=dict(type='Normal', layer='Conv2d', std=0.5)))
    init_weights(head)
    assert float(head.rpn_conv.weight.detach().std()) == pytest.approx(0.5, rel=0.2)
    own = dict(type='Constant', name='retina_cls', val=2.0)
    constant = dict(type='Constant', layer='Conv2d', val=0.25, bias=1.0, override=own)
    head = MODELS.build(dict(RETINA, init_cfg=constant))
    init_weights(head)
    assert (head.retina_reg.weight == 0.25).all() and (head.retina_cls.weight == 2).all()
    backbone = MODELS.build(dict(type='ResNet', depth=18, init_cfg=[dict(type='Constant', layer='Conv2d', val=3.0)]))
    init_weights(backbone)
    assert (backbone.layer3[1].conv2.weight == 3).all() and (backbone.bn1.weight == 1).all()


def test_init_cfg_of_a_detector_loads_a_whole_one(tmp_path):
    cfg = dict(
        type='RPN',
        backbone=dict(type='ResNet', depth=18, base_channels=8),
        neck=dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=8, num_outs=5),
        rpn_head=RPN,
    )
    model = MODELS.build(cfg)
    # mmdetection's own RPN calls its head bbox_head
    state = {key.replace('rpn_head.', 'bbox_head.'): value + 1 for key, value in model.state_dict().items()}
    torch.save(dict(state_dict=state, meta=dict(mmdet_version='3.3.0')), tmp_path / 'x.pth')
    other = MODELS.build(dict(cfg, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'x.pth'))))
    other.init_weights()
    assert all(torch.equal(v, model.state_dict()[k] + 1) for k, v in other.state_dict().items())
    torch.save(dict(state_dict={'a.weight': torch.zeros(1)}), tmp_path / 'x.pth')
    with pytest.raises(UserError, match='not a checkpoint of a known detector'):
        other.init_weights()


def test_weight_standardisation():
    torch.manual_seed(0)
    module = ConvModule(3, 4, 3, conv_cfg=dict(type='ConvWS'), norm_cfg=dict(type='GN', num_groups=2), act_cfg=None)
    assert isinstance(module.conv, ConvWS2d) and module.conv.bias is None
    weight = module.conv.weight.detach()
    flat = weight.flatten(1)
    plain = ((flat - flat.mean(1, True)) / (flat.std(1, keepdim=True) + 1e-5)).reshape(weight.shape)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(module.conv(x), nn.functional.conv2d(x, plain))


def test_cbn_behind_standardised_weights_compensates_their_change():
    """Its closed forms do not hold there; autograd's derivatives must serve, through the standardisation."""
    torch.manual_seed(0)
    norm_cfg = dict(type='CBN', buffer_num=1, burnin_iters=0)
    module = ConvModule(3, 4, 1, conv_cfg=dict(type='ConvWS'), norm_cfg=norm_cfg, act_cfg=None).double()
    x = [torch.randn(8, 3, 5, 5, dtype=torch.float64) for _ in range(2)]
    module(x[0])
    with torch.no_grad():
        module.conv.weight += 1e-4 * torch.randn_like(module.conv.weight)
    y = module(x[1])
    both = module.conv(torch.cat(x))
    expected = (module.conv(x[1]) - both.mean((0, 2, 3), keepdim=True)) / both.std(
        (0, 2, 3), correction=0, keepdim=True
    )  # fmt: skip
    torch.testing.assert_close(y, expected, atol=2e-3, rtol=0)


def test_batch_is_padded_to_a_fixed_size_in_training(make_data):
    augments = [dict(type='BatchFixedSizePad', size=(128, 160), img_pad_value=7)]
    preprocessor = MODELS.build(dict(type='DetDataPreprocessor', pad_size_divisor=32, batch_augments=augments))
    data = preprocessor(make_data([1, 1]), True)
    assert data['inputs'].shape == (2, 3, 128, 160) and (data['inputs'][:, :, 96:] == 7).all()
    assert data['data_samples'][0].pad_shape == data['data_samples'][0].batch_input_shape == (128, 160)
    assert preprocessor(make_data([1]), False)['inputs'].shape == (1, 3, 96, 128)
    with pytest.raises(ValueError, match='larger than size'):
        preprocessor(make_data([1], height=200), True)


def test_balanced_l1_joins_smoothly():
    loss = MODELS.build(dict(type='BalancedL1Loss', alpha=0.5, gamma=1.5, beta=1.0))
    x = torch.tensor([0.0, 0.5, 1 - 1e-6, 1 + 1e-6, 3.0], dtype=torch.float64, requires_grad=True)
    values = loss.elementwise(x, torch.zeros(5, dtype=torch.float64))
    values.sum().backward()
    values = values.tolist()
    b = math.expm1(3.0)
    expected = torch.tensor([0.0, 0.5 * math.log(b * 0.5 + 1), 1.5, 1.5, 1.5], dtype=torch.float64)
    torch.testing.assert_close(x.grad, expected, atol=1e-5, rtol=0)
    assert values[0] == 0 and values[2] == pytest.approx(values[3], abs=1e-5)


def test_proposal_fast_is_proposal(tmp_path):
    (tmp_path / 'a.json').write_text('{}')
    metric = METRICS.build(dict(type='CocoMetric', ann_file=str(tmp_path / 'a.json'), metric='proposal_fast'))
    assert metric.metrics == ['proposal']


def test_runtime_settings_of_mmdet3_are_known():
    """What every config of its `default_runtime.py` names."""
    from mmdet.registry import HOOKS, VISUALIZERS

    assert VISUALIZERS.get('DetLocalVisualizer') is VISUALIZERS.get('DetVisualizer')
    assert HOOKS.build(dict(type='DetVisualizationHook')).out_dir is None
    assert HOOKS.build(dict(type='DetVisualizationHook', test_out_dir='x')).out_dir is None  # drawn on request only
    assert HOOKS.build(dict(type='DetVisualizationHook', draw=True, test_out_dir='x')).out_dir == 'x'
    assert HOOKS.build(dict(type='DetVisualizationHook', draw=True)).out_dir is None  # validation alone is drawn
    with pytest.raises(ValueError, match='test_out_dir=FOLDER'):
        HOOKS.build(dict(type='DetVisualizationHook', show=True))


def test_bfp_refuses_what_it_cannot_do():
    neck = [FPN, dict(type='BFP', in_channels=8, num_levels=3)]
    cfg = dict(type='RPN', backbone=dict(type='ResNet', depth=18, base_channels=8), neck=neck, rpn_head=RPN)
    with pytest.raises(ValueError, match='2 maps for num_levels=3'):
        MODELS.build(dict(cfg, backbone=dict(cfg['backbone'], out_indices=(0, 1))))(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match="refine_type='local'"):
        MODELS.build(dict(type='BFP', in_channels=8, num_levels=3, refine_type='local'))


@pytest.mark.parametrize('norm_cfg', [None, dict(type='BN')])
def test_bfp_starts_with_the_plain_mean(norm_cfg):
    """mmdetection's initial values: the non-local block adds nothing yet. Wide values would blur all levels at once."""
    torch.manual_seed(0)
    plain = MODELS.build(dict(type='BFP', in_channels=64, num_levels=3))
    neck = MODELS.build(dict(type='BFP', in_channels=64, num_levels=3, refine_type='non_local', norm_cfg=norm_cfg))
    maps = tuple(torch.randn(2, 64, size, size) for size in (16, 8, 4))
    for found, expected in zip(neck(maps), plain(maps)):
        torch.testing.assert_close(found, expected)
    assert [round(conv.conv.weight.std().item(), 3) for conv in (neck.refine.g, neck.refine.theta)] == [0.01, 0.01]
