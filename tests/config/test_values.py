"""Values that cannot be right, and missing parts, are refused before anything is built."""

import copy
from functools import cache
from pathlib import Path

import pytest
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from toy_task import ToyDataset, ToyDetector, ToyMetric

from mmdet.config.check import check_values
from mmdet.config.errors import UserError
from mmdet.config.load import load_config

CONFIGS = Path(__file__).parents[2] / 'configs'


@cache
def _mask_rcnn() -> Config:
    return load_config(CONFIGS / 'mask_rcnn' / 'mask_rcnn_r50_fpn_1x.py')


def mask_rcnn() -> Config:
    return copy.deepcopy(_mask_rcnn())


def message(options: dict, training: bool = True) -> str:
    cfg = mask_rcnn()
    for key, value in options.items():
        *parents, leaf = key.split('.')
        node = cfg
        for parent in parents:
            node = node[int(parent) if parent.isdigit() else parent]
        node[leaf] = value
    with pytest.raises(UserError) as caught:
        check_values(cfg, training)
    assert '\n' not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize('paramwise, option', [
    (dict(custom_keys={'backbone': dict(lr_mult=0.1), 'neck.fpn': dict(decay_mult=0)}), 'neck.fpn.decay_mult'),
    (dict(flat_decay_mult=0.0), 'flat_decay_mult'), (dict(bias_lr_mult=2.0), 'bias_lr_mult'),
])  # fmt: skip
def test_factors_of_what_the_optimizer_does_not_give(paramwise, option):
    gone = 'lr' if 'lr' in option else 'weight_decay'
    optimizer = {key: value for key, value in dict(type='AdamW', lr=0.1, weight_decay=0.1).items() if key != gone}
    said = message({'optim_wrapper.optimizer': optimizer, 'optim_wrapper.paramwise_cfg': paramwise})
    assert f'{option} is a factor of {gone}, which' in said and f'add {gone}=... there' in said


@pytest.mark.parametrize('path', sorted(CONFIGS.glob('[!_]*/*.py')), ids=lambda p: p.stem)
def test_shipped_configs_are_right(path):
    cfg = load_config(path)
    check_values(cfg, training=True)
    check_values(cfg, training=False)


@pytest.mark.parametrize(
    'place, value, needed',
    [
        ('train_dataloader.batch_size', 0, 'a whole number of at least 1'),
        ('train_dataloader.batch_size', 2.5, 'a whole number of at least 1'),
        ('val_dataloader.num_workers', -1, 'a whole number of at least 0'),
        ('train_cfg.max_epochs', 'two', 'a whole number of at least 1'),
        ('load_from', 7, 'the name of a file is needed'),
        ('auto_scale_lr', 16, 'a dict is needed'),
        ('auto_scale_lr.base_batch_size', 'x', 'at least 1 is needed'),
        ('auto_scale_lr.base_batch_size', -4, 'at least 1 is needed'),
        ('train_cfg.val_begin', 'x', 'at least 0 is needed'),
        ('train_cfg.val_interval', 0, 'at least 1 is needed. To train without validation set val_dataloader=None'),
        ('optim_wrapper.optimizer.lr', '0.02', 'a number of at least 0'),
        ('optim_wrapper.clip_grad.max_norm', 'a', 'a number of at least 0'),
        ('model.roi_head.bbox_head.num_classes', 'three', 'a whole number of at least 1'),
        ('model.rpn_head.anchor_generator.ratios', [], 'a list of numbers'),
        ('model.train_cfg.rcnn.sampler.num', 0, 'a whole number of at least 1'),
        ('model.train_cfg.rpn.sampler.pos_fraction', 2, 'a number from 0 to 1'),
        ('model.test_cfg.rcnn.score_thr', 'high', 'a number from 0 to 1'),
        ('model.test_cfg.rcnn.nms.iou_threshold', 5, 'a number from 0 to 1'),
        ('model.test_cfg.rpn.nms.type', 'nmss', "'nms' or 'soft_nms'"),
        ('default_hooks.logger.interval', 0, 'a whole number of at least 1'),
        ('model.test_cfg.rcnn.mask_paste', 'resized', "'resize' is needed"),
        ('default_hooks', 3, 'a dict is needed'),
        ('test_dataloader', 'coco', 'a dict is needed'),
    ],
)
def test_a_wrong_value_names_its_place(place, value, needed):
    text = message({place: value})
    assert text.startswith(f'{place}={value!r}: ') and needed in text


@pytest.mark.parametrize(
    'options, expected',
    [
        (dict(model=None), 'the config has no model'),
        (dict(custom_hooks='EMAHook'), "custom_hooks='EMAHook': a list of hooks is needed"),
        (dict(train_cfg=None), 'the config has no train_cfg: training needs train_dataloader, train_cfg, '),
        (dict(optim_wrapper=None), 'the config has no optim_wrapper: training needs'),
        (dict(val_cfg=None, val_evaluator=None), 'the config has no val_cfg and no val_evaluator: validation needs'),
        ({'optim_wrapper.optimizer': None}, 'the config has no optim_wrapper.optimizer'),
        ({'model.train_cfg': None}, 'the config has no model.train_cfg.rpn, which model.rpn_head needs'),
        ({'model.train_cfg.rcnn': None}, 'the config has no model.train_cfg.rcnn, which model.roi_head needs'),
        ({'model.test_cfg': None}, 'the config has no model.test_cfg.rpn'),
        ({'model.test_cfg.rcnn': dict(score_thr=0.1, max_per_img=9)},
         'model.test_cfg.rcnn has no nms and no mask_thr_binary, which model.roi_head needs'),
        ({'model.train_cfg.rpn_proposal': dict(nms_pre=9)}, 'model.train_cfg.rpn_proposal has no nms and no max_per'),
        ({'model.train_cfg.rcnn': [dict(assigner=1, sampler=1, mask_size=28), dict(assigner=1, mask_size=28)]},
         'model.train_cfg.rcnn.1 has no sampler, which'),
        ({'model.roi_head': dict(type='X')}, "val_evaluator.metric=['bbox', 'segm']: MaskRCNN has no mask head here"),
        ({'train_dataloader.dataset.pipeline': []}, 'train_dataloader.dataset.pipeline must end with'),
    ],
)  # fmt: skip
def test_missing_parts(options, expected):
    assert message(options).startswith(expected)


def test_what_is_not_needed_may_be_missing():
    cfg = mask_rcnn()
    cfg.merge_from_dict(dict(val_dataloader=None, val_cfg=None, val_evaluator=None))
    check_values(cfg, training=True)
    cfg.model.train_cfg = cfg.train_cfg = None
    check_values(cfg, training=False)
    assert 'the config has no test_evaluator: testing needs' in message(dict(test_evaluator=None), training=False)
    two_optimizers = dict(constructor='Mine', a=dict(type='OptimWrapper'))
    cfg = mask_rcnn()
    cfg.optim_wrapper = Config(two_optimizers)._cfg_dict
    check_values(cfg, training=True)


def test_what_a_users_classes_do_not_ask_for_is_not_asked_for():
    """A set-prediction head without test_cfg, a data set without a pipeline, a pack of one's own, another metric."""
    cfg = mask_rcnn()
    cfg.model = dict(type=ToyDetector, bbox_head=dict(type='MyHead'), roi_head=dict(type='MyHead'))
    cfg.train_dataloader.dataset = dict(type=ToyDataset)
    cfg.val_evaluator = dict(type=ToyMetric)
    cfg.test_dataloader.dataset.pipeline = [dict(type=MyPack)]
    check_values(cfg, training=True)
    check_values(cfg, training=False)


class MyPack(BaseTransform):
    def transform(self, results):
        return results


class Picky(ToyMetric):
    @classmethod
    def check_config(cls, cfg, path, whole, training):
        if cfg.get('speed') == 'slow':
            raise UserError(f'{path}.speed: too slow for {whole["model"]["type"]}, {training}')


def test_a_class_checks_its_own_part():
    cfg = mask_rcnn()
    cfg.test_evaluator = [dict(type='CocoMetric'), dict(type=Picky, speed='slow')]
    with pytest.raises(UserError, match=r'test_evaluator\.1\.speed: too slow for MaskRCNN, False'):
        check_values(cfg, training=False)
    cfg.test_evaluator[1].speed = 'fast'
    check_values(cfg, training=False)


def test_the_data_set_inside_a_wrapper():
    cfg = mask_rcnn()
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=cfg.train_dataloader.dataset)
    check_values(cfg, training=True)
    cfg.train_dataloader.dataset.dataset.pipeline.pop()
    with pytest.raises(UserError, match=r'train_dataloader.dataset.dataset.pipeline must end with'):
        check_values(cfg, training=True)
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[cfg.train_dataloader.dataset.dataset])
    with pytest.raises(UserError, match=r'train_dataloader.dataset.datasets.0.pipeline must end with'):
        check_values(cfg, training=True)
