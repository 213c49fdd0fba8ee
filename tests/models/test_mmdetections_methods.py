"""A subclass that overrides a method of mmdetection is obeyed, or refused when it is defined: never ignored."""

import inspect
from pathlib import Path

import pytest
import torch

from mmdet import models
from mmdet.config.errors import UserError
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures import DetDataSample

ROOT = Path(__file__).resolve().parents[2]
DENSE = 'get_anchors get_targets loss_by_feat loss_by_feat_single predict_by_feat loss_and_predict'.split()
DENSE += ['_init_layers', 'forward_single', 'get_bboxes', 'forward_train', 'aug_test']
ROI = '_bbox_forward bbox_loss predict_bbox _mask_forward mask_loss predict_mask init_bbox_head'.split()
REFUSED = dict(
    StandardRoIHead=ROI,
    CascadeRoIHead=[*ROI, '_refine_roi'],
    ConvFCBBoxHead=['get_targets', 'loss_and_target', 'predict_by_feat', 'refine_bboxes'],
    Shared2FCBBoxHead=['get_targets', 'loss_and_target', 'predict_by_feat', '_add_conv_fc_branch'],
    FCNMaskHead=['get_targets', 'loss_and_target', 'predict_by_feat'],
    RPNHead=DENSE,
    RetinaHead=DENSE,
    SSDHead=DENSE,
    MaxIoUAssigner=['assign_wrt_overlaps'],
    RandomSampler=['_sample_pos', '_sample_neg'],
    OHEMSampler=['_sample_pos', '_sample_neg', 'hard_mining'],
    IoUBalancedNegSampler=['_sample_neg', 'sample_via_interval'],
    InstanceBalancedPosSampler=['_sample_pos'],
    DetTTAModel=['_merge_single_sample', 'merge_aug_bboxes'],
    AnchorGenerator=['gen_base_anchors', 'single_level_grid_priors', 'valid_flags'],
    SingleRoIExtractor=['map_roi_levels'],
    ResNet=['make_res_layer', '_make_stem_layer'],
    ResNeXt=['make_res_layer'],
    DetDataPreprocessor=['_get_pad_shape', 'pad_gt_masks'],
    MaskRCNN=['_forward', 'add_pred_to_datasample', 'forward_train', 'simple_test', 'aug_test'],
    RetinaNet=['_forward', 'add_pred_to_datasample', 'forward_train', 'simple_test', 'aug_test'],
)
# Class and method -> whether a training step calls it, or a prediction.
OBEYED = {
    ('MaskRCNN', 'extract_feat'): 'both', ('MaskRCNN', 'loss'): 'loss', ('MaskRCNN', 'predict'): 'predict',
    ('ResNet', '_freeze_stages'): 'loss', ('MaxIoUAssigner', 'assign'): 'loss', ('RandomSampler', 'sample'): 'loss',
    ('RandomSampler', 'random_choice'): 'loss', ('AnchorGenerator', 'grid_priors'): 'both',
    ('DeltaXYWHBBoxCoder', 'encode'): 'loss', ('DeltaXYWHBBoxCoder', 'decode'): 'both',
    ('StandardRoIHead', 'loss'): 'loss', ('StandardRoIHead', 'predict'): 'predict',
    ('Shared4Conv1FCBBoxHead', 'loss'): 'loss', ('FCNMaskHead', 'loss'): 'loss', ('RPNHead', 'loss'): 'loss',
    ('RPNHead', 'predict'): 'both', ('SingleRoIExtractor', 'forward'): 'both', ('FPN', 'forward'): 'both',
}  # fmt: skip
# What takes the place of a method that is refused, and is called, too.
OBEYED |= {
    ('StandardRoIHead', 'sample'): 'loss', ('StandardRoIHead', 'predict_masks'): 'predict',
    ('StandardRoIHead', 'forward'): 'both', ('RPNHead', 'sample'): 'loss', ('FCNMaskHead', 'predict'): 'predict',
    ('RandomSampler', 'choose_positives'): 'loss', ('RandomSampler', 'choose_negatives'): 'loss',
}  # fmt: skip


@pytest.mark.parametrize('owner, name', [(owner, name) for owner, names in REFUSED.items() for name in names])
def test_what_nothing_calls_is_refused_and_says_what_is_called(owner, name):
    base = getattr(models, owner)
    with pytest.raises(UserError) as error:
        type('Mine', (base,), {name: lambda self: None})
    text = str(error.value)
    assert f'Mine.{name} would never be called' in text and '\n' not in text and (ROOT / guide_of(text)).is_file()
    *_, instead = text.split(' instead (docs/')[0].split(' override ')
    for method in instead.removeprefix("the RoI head's ").split(' and '):
        classes = (*base.__mro__, models.StandardRoIHead, models.CascadeRoIHead)
        assert any(method in vars(cls) for cls in classes if cls.__module__.startswith('mmdet.'))


@pytest.mark.parametrize('owner, name', OBEYED, ids='.'.join)
def test_what_is_called_is_obeyed(small_cfg, make_data, owner, name):
    """A subclass that counts the calls, in the place of its base in a Mask R-CNN."""
    base, calls = getattr(models, owner), []

    def counted(self, *args, **kwargs):
        calls.append(name)
        return getattr(base, name)(*(() if isinstance(vars_of(base, name), staticmethod) else (self,)), *args, **kwargs)

    mine = type('Mine', (base,), {name: counted})

    def put(cfg):
        """The config with `mine` for the owner."""
        if isinstance(cfg, dict):
            cfg = {key: put(value) for key, value in cfg.items()}
            return dict(cfg, type=mine) if cfg.get('type') == owner else cfg
        return cfg

    cfg = put(small_cfg('mask').to_dict())
    model = MODELS.build(cfg)
    if OBEYED[owner, name] in ('loss', 'both'):
        calls.clear()
        model.train()(**model.data_preprocessor(make_data([2]), True), mode='loss')
        assert calls
    if OBEYED[owner, name] in ('predict', 'both'):
        calls.clear()
        model.roi_head.test_cfg.update(score_thr=0.0)
        with torch.no_grad():
            model.eval().test_step(make_data([1]))
        assert calls


def vars_of(cls: type, name: str):
    return next(vars(base)[name] for base in cls.__mro__ if name in vars(base))


@pytest.mark.parametrize('owner, name, theirs', [
    ('Shared4Conv1FCBBoxHead', 'loss', 'cls_score, bbox_pred, rois, labels, label_weights, bbox_targets, bbox_weights'),
    ('StandardRoIHead', 'loss', 'x, rpn_results_list, batch_data_samples'),
    ('CascadeRoIHead', 'predict', 'x, rpn_results_list, batch_data_samples, rescale=False'),
    ('RPNHead', 'loss', 'x, batch_data_samples'),
    ('RetinaHead', 'predict', 'x, batch_data_samples, rescale=False'),
    ('MaxIoUAssigner', 'assign', 'pred_instances, gt_instances, gt_instances_ignore=None, **kwargs'),
    ('RandomSampler', 'sample', 'assign_result, pred_instances, gt_instances'),
])  # fmt: skip
def test_a_method_with_mmdetections_arguments_is_refused_and_says_what_comes(owner, name, theirs):
    base = getattr(models, owner)
    names = [argument.split('=')[0].strip('* ') for argument in theirs.split(',')]
    with pytest.raises(UserError) as error:
        type('Mine', (base,), {name: eval(f'lambda self, {theirs}: None')})
    text = str(error.value)
    assert text.startswith(f'Mine.{name}({", ".join(names)}) would be given something else: {owner}.') or (
        text.startswith(f'Mine.{name}({", ".join(names)}) would be given something else: ConvFCBBoxHead.'))
    ours = [*inspect.signature(inspect.unwrap(getattr(base, name))).parameters][1:]
    assert f'takes ({", ".join(ours)}) here' in text and (ROOT / guide_of(text)).is_file()


def test_a_detectors_arguments_may_have_mmdetections_names():
    """They are the same."""

    class Mine(models.MaskRCNN):
        def loss(self, batch_inputs, batch_data_samples):
            return super().loss(batch_inputs, batch_data_samples)

    assert Mine.loss is not models.MaskRCNN.loss


@pytest.mark.parametrize('owner, name', [(owner, name) for owner, names in REFUSED.items() for name in names[:2]])
def test_who_calls_such_a_method_is_told_what_to_call(owner, name):
    with pytest.raises(UserError, match=f' has no {name} here, use '):
        getattr(getattr(models, owner), name)(None, batch_data_samples=[])


@pytest.mark.parametrize('name', ['loss', 'predict'])
@pytest.mark.parametrize('owner', ['RPNHead', 'RetinaHead', 'SSDHead', 'StandardRoIHead', 'CascadeRoIHead'])
def test_who_calls_a_head_with_data_samples_is_told_what_gives_the_same(owner, name):
    """As mmdetection's detectors do, at any time."""
    head = object.__new__(getattr(models, owner))
    with pytest.raises(UserError, match=f'{owner}.{name} is given a list of DetDataSample, as in mmdetection') as error:
        getattr(head, name)((torch.zeros(1, 8, 4, 4),), [DetDataSample()], rescale=False)
    assert (ROOT / guide_of(str(error.value))).is_file()


def guide_of(text: str) -> str:
    """'docs/extend/head.md', at the end of a message in parentheses."""
    return text.rpartition('(')[2].removesuffix(')')


@pytest.mark.parametrize('cfg', [
    dict(type='DetDataPreprocessor', pad_mask=True, pad_seg=False, boxtype2tensor=True),
    dict(type='ResNet', depth=18, deep_stem=False, plugins=None),
    dict(type='FCNMaskHead', num_classes=2, predictor_cfg=dict(type='Conv')),
    dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5, iou_calculator=dict(type='BboxOverlaps2D')),
])  # fmt: skip
def test_a_script_may_give_what_changes_nothing(cfg):
    registry = MODELS if cfg['type'] in MODELS.module_dict else TASK_UTILS
    assert type(registry.build(dict(cfg))).__name__ == cfg['type']
    *_, option = cfg
    with pytest.raises(UserError, match=f"^{option}='other': {cfg['type']} supports "):
        registry.build(dict(cfg, **{option: 'other'}))
    with pytest.raises(TypeError, match="unexpected keyword argument 'of_no_project'"):
        registry.build(dict(cfg, of_no_project=1))


def test_keywords_of_mmdetection_are_taken_where_they_change_nothing():
    boxes = torch.tensor([[0.0, 0, 4, 4]])
    loss, coder = MODELS.build(dict(type='L1Loss')), TASK_UTILS.build(dict(type='DeltaXYWHBBoxCoder'))
    anchors = TASK_UTILS.build(dict(type='AnchorGenerator', scales=[8], ratios=[1.0], strides=[4]))
    assert loss(boxes, boxes + 1, reduction_override=None) == loss(boxes, boxes + 1) == 1
    assert torch.equal(coder.decode(boxes, 0 * boxes, max_shape=None), boxes)
    assert torch.equal(*(anchors.grid_priors([(2, 2)], **given)[0] for given in ({}, dict(dtype=torch.float32))))
    for call in (lambda: loss(boxes, boxes, reduction_override='none'),
                 lambda: anchors.grid_priors([], dtype=torch.half),
                 lambda: coder.decode(boxes, boxes, max_shape=(4, 4))):  # fmt: skip
        with pytest.raises(UserError, match=r' takes no \w+ here: .* \(docs/extend/head.md\)'):
            call()
