"""A subclass that overrides a method of mmdetection is obeyed, or refused when it is defined: never ignored."""

import pytest
import torch

from mmdet import models
from mmdet.config.errors import UserError
from mmdet.registry import MODELS

DENSE = 'get_anchors get_targets loss_by_feat loss_by_feat_single predict_by_feat loss_and_predict'.split()
DENSE += ['_init_layers', 'forward_single', 'get_bboxes', 'forward_train']
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
    OHEMSampler=['_sample_pos', '_sample_neg'],
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
    assert f'Mine.{name} would never be called' in text and 'docs/extend/' in text and '\n' not in text
    *_, instead = text.removesuffix(' instead (docs/extend/)').split(' override ')
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


def test_a_box_heads_loss_written_for_mmdetection_does_not_get_other_arguments(small_cfg, make_data):
    """It has as many as ours, in another meaning: they come by name."""

    class Mine(models.Shared4Conv1FCBBoxHead):
        def loss(self, cls_score, bbox_pred, rois, labels, label_weights, bbox_targets, bbox_weights):
            return {}

    cfg = small_cfg('mask')
    cfg.roi_head.bbox_head.type = Mine
    model = MODELS.build(cfg).train()
    with pytest.raises(TypeError, match='unexpected keyword argument'):
        model(**model.data_preprocessor(make_data([2]), True), mode='loss')
