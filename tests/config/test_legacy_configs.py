"""Configs of mmdetection 0.x to 2.x: what they become, and that nothing of them is lost without a word."""

import copy
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose

from mmdet.config.errors import UserError
from mmdet.config.legacy import is_legacy, modern_path, translate, version_of
from mmdet.config.load import check_types, load_config
from mmdet.config.values import walk
from mmdet.datasets.pipeline import build_steps
from mmdet.engine.runner import drop_pretrained
from mmdet.engine.tta import use_tta
from mmdet.registry import MODELS, registered_class

NORM = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)


def nested(flat: dict) -> dict:
    """{'a.0.b': 1} -> {'a': [{'b': 1}]}"""
    root: dict = {}
    for dotted, value in flat.items():
        *parents, key = dotted.split('.')
        node = root
        for parent in parents:
            node = node.setdefault(parent, {})
        node[key] = value

    def lists(node):
        if not isinstance(node, dict):
            return node
        made = {key: lists(value) for key, value in node.items()}
        return [made[str(i)] for i in range(len(made))] if made and all(key.isdigit() for key in made) else made

    return lists(root)


@pytest.fixture(scope='module')
def recipes(real_data) -> dict[str, dict]:
    """The 53 config files of the method's release, put together from their option values."""
    path = real_data.parent / 'release_recipes.json'
    if not path.is_file():
        pytest.skip(f'no {path}')
    content = json.loads(path.read_text())
    found = {}
    for name, flat in content['recipes'].items():
        cfg = found[name] = nested({**content['common'], **flat})
        for split in ('train', 'val', 'test'):
            dataset = cfg['data'][split].get('dataset', cfg['data'][split])
            voc = 'VOC' in str(dataset['img_prefix'])
            file = 'ImageSets/Main/test.txt' if voc else f'instances_{"train" if split == "train" else "val"}2017.json'
            dataset.setdefault('ann_file', f'data/{file}')
    return found


def shapes(cfg: dict) -> dict[str, tuple]:
    """Of every weight of a model's config."""
    drop_pretrained(cfg)
    with torch.device('meta'):
        return {key: tuple(value.shape) for key, value in MODELS.build(cfg).state_dict().items()}


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """The lines for the log."""
    lines: list[str] = []
    monkeypatch.setattr('mmdet.config.legacy.say', lines.append)
    return lines


def test_every_recipe_of_the_release_is_translated_whole(recipes, said):
    assert len(recipes) == 53
    for name, old in recipes.items():
        assert is_legacy(old) and version_of(old) == '0.x', name
        new = translate(old, name)
        assert said.pop() == f'{name} is of mmdetection 0.x; it is translated (tools/print_config.py shows it)'
        keys = {path.rpartition('.')[2] for path, _ in walk(new)}
        left = {'normalize', 'img_scale', 'flip_ratio', 'target_stds', 'iou_thr', 'out_size', 'max_num', 'pretrained'}
        assert keys & left <= {'target_stds'}, name
        # 81 classes of COCO and 21 of VOC counted the background
        counts = {value for path, value in walk(new['model']) if path.endswith('num_classes')}
        assert counts <= {80, 20}, name
        loop, (_, steps) = new['train_cfg'], (new['param_scheduler'] * 2)[-2:]
        assert (loop['max_epochs'], steps['milestones']) == (old['total_epochs'], old['lr_config']['step']), name
        assert new['optim_wrapper']['optimizer'] == old['optimizer'], name
        assert new['train_dataloader']['batch_size'] == old['data']['imgs_per_gpu'], name


# Types that such a recipe needs of the project.
NEEDED = {'dcn/': 'DCN', 'ssd': 'Expand', 'voc': 'VOCDataset', 'dpool': 'DeformRoIPoolPack'}


@pytest.mark.slow
def test_the_recipes_of_the_families_that_are_here_build(recipes, tmp_path):
    built = []
    for name, old in recipes.items():
        if any(word in name and registered_class(kind) is None for word, kind in NEEDED.items()):
            continue
        path = tmp_path / f'{len(built)}.json'
        path.write_text(json.dumps(old))
        cfg = load_config(path)
        check_types(cfg)
        drop_pretrained(cfg.model)
        with torch.device('meta'):
            MODELS.build(cfg.model)
        built.append(name)
    assert len(built) >= 40


@pytest.mark.slow
def test_the_recipes_of_the_release_are_what_stands_under_their_names_here(recipes):
    """Those of configs/offical_cfgs were written by hand, and are compared with the release elsewhere."""

    def leaves(cfg: dict) -> dict:
        kept = {key: cfg[key] for key in ('model', 'optim_wrapper', 'param_scheduler')}
        plain = json.loads(json.dumps(kept))
        return {path: value for path, value in walk(plain) if not isinstance(value, (dict, list))}

    compared = []
    for name, old in recipes.items():
        if name.startswith('offical_cfgs') and Path(f'configs/{name}.py').is_file():
            new, ours = leaves(translate(old, name)), leaves(load_config(f'configs/{name}.py').to_dict())
            other = {key: (new[key], ours[key]) for key in new.keys() & ours.keys() if new[key] != ours[key]}
            heads = {key for key in other if key.endswith('bbox_head.type')}  # ConvFCBBoxHead by its short name
            assert other.keys() == heads, (name, other)
            compared.append(name)
    assert len(compared) >= 40


@pytest.mark.parametrize('norm', ['', '_gn', '_syncbn', '_cbn_buffer3_burnin8'])
@pytest.mark.parametrize('kind', ['faster', 'mask'])
def test_the_methods_own_files_become_the_configs_here(recipes, kind, norm):
    name = f'cbn/{kind}_rcnn_r50_fpn{norm}_1x'
    new, ours = translate(recipes[name], name), load_config(f'configs/{name}.py')
    assert shapes(new['model']) == shapes(ours.model.to_dict())
    same = (
        'optim_wrapper.optimizer', 'optim_wrapper.clip_grad', 'train_cfg.max_epochs', 'model.data_preprocessor',
        'model.test_cfg.rcnn', 'model.train_cfg.rcnn.sampler', 'model.train_cfg.rpn.sampler',
        'model.rpn_head.anchor_generator', 'param_scheduler', 'train_dataloader.batch_size',
    )  # fmt: skip
    theirs, here = dict(walk(new)), dict(walk(ours.to_dict()))
    for key in same:
        assert theirs[key] == here[key], key
    norms = [{k: v for k, v in part.items() if k != 'requires_grad'} for _, part in walk(new['model'])
             if isinstance(part, dict) and part.get('type') in ('GN', 'SyncBN', 'CBN')]  # fmt: skip
    assert all(n == {k: v for k, v in here['model.neck.norm_cfg'].items()} for n in norms)
    assert len(norms) == (0 if not norm else 2 + (kind == 'mask'))


def faster_rcnn_1x() -> dict:
    """As mmdetection 1.x writes it."""
    rpn = dict(nms_across_levels=False, nms_pre=2000, nms_post=2000, max_num=2000, nms_thr=0.7, min_bbox_size=0)
    steps = [
        dict(type='LoadImageFromFile'),
        dict(
            type='MultiScaleFlipAug', img_scale=(1333, 800), flip=False,
            transforms=[
                dict(type='Resize', keep_ratio=True), dict(type='RandomFlip'), dict(type='Normalize', **NORM),
                dict(type='Pad', size_divisor=32), dict(type='ImageToTensor', keys=['img']),
                dict(type='Collect', keys=['img']),
            ],
        ),
    ]  # fmt: skip
    train = [
        dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True),
        dict(type='Resize', img_scale=[(1333, 640), (1333, 800)], keep_ratio=True),
        dict(type='RandomFlip', flip_ratio=0.5), dict(type='Normalize', **NORM), dict(type='Pad', size_divisor=32),
        dict(type='DefaultFormatBundle'), dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels']),
    ]  # fmt: skip
    coder = dict(target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2])
    return dict(
        model=dict(
            type='FasterRCNN', pretrained='torchvision://resnet50',
            backbone=dict(type='ResNet', depth=50, num_stages=4, out_indices=(0, 1, 2, 3), frozen_stages=1),
            neck=dict(type='FPN', in_channels=[256, 512, 1024, 2048], out_channels=256, num_outs=5),
            rpn_head=dict(
                type='RPNHead', in_channels=256, feat_channels=256, anchor_scales=[8], anchor_ratios=[0.5, 1.0, 2.0],
                anchor_strides=[4, 8, 16, 32, 64], target_means=[0.0] * 4, target_stds=[1.0] * 4,
                loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0),
                loss_bbox=dict(type='SmoothL1Loss', beta=1.0 / 9.0, loss_weight=1.0),
            ),
            bbox_roi_extractor=dict(
                type='SingleRoIExtractor', roi_layer=dict(type='RoIAlign', out_size=7, sample_num=2),
                out_channels=256, featmap_strides=[4, 8, 16, 32],
            ),
            bbox_head=dict(
                type='SharedFCBBoxHead', num_fcs=2, in_channels=256, fc_out_channels=1024, roi_feat_size=7,
                num_classes=81, reg_class_agnostic=False, **coder,
            ),
        ),
        train_cfg=dict(
            rpn=dict(
                assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3),
                sampler=dict(type='RandomSampler', num=256, pos_fraction=0.5), allowed_border=0, pos_weight=-1,
            ),
            rpn_proposal=rpn,
            rcnn=dict(
                assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5),
                sampler=dict(type='RandomSampler', num=512, pos_fraction=0.25, add_gt_as_proposals=True),
            ),
        ),
        test_cfg=dict(
            rpn=dict(rpn, nms_pre=1000, max_num=1000, nms_post=1000),
            rcnn=dict(score_thr=0.05, nms=dict(type='nms', iou_thr=0.5), max_per_img=100),
        ),
        data=dict(
            imgs_per_gpu=2, workers_per_gpu=2,
            train=dict(type='CocoDataset', ann_file='c/train.json', img_prefix='c/train/', pipeline=train),
            val=dict(type='CocoDataset', ann_file='c/val.json', img_prefix='c/val/', pipeline=steps),
            test=dict(type='CocoDataset', ann_file='c/val.json', img_prefix='c/val/', pipeline=steps),
        ),
        optimizer=dict(type='SGD', lr=0.02, momentum=0.9, paramwise_options=dict(norm_decay_mult=0.0)),
        optimizer_config=dict(grad_clip=dict(max_norm=35, norm_type=2)),
        lr_config=dict(policy='step', warmup='linear', warmup_iters=500, warmup_ratio=1 / 3, step=[8, 11]),
        checkpoint_config=dict(interval=2), evaluation=dict(interval=3), log_config=dict(interval=10),
        total_epochs=12, dist_params=dict(backend='nccl'), resume_from=None, load_from=None,
        workflow=[('train', 1)],
    )  # fmt: skip


def test_a_config_of_mmdetection_1x(said):
    new = translate(faster_rcnn_1x(), 'old.py')
    assert said == ['old.py is of mmdetection 1.x; it is translated (tools/print_config.py shows it)']
    ours = load_config('configs/faster_rcnn/faster_rcnn_r50_fpn_1x.py')
    assert shapes(dict(new['model'])) == shapes(ours.model.to_dict())
    model = new['model']
    assert model['test_cfg']['rpn'] == dict(
        nms_pre=1000, max_per_img=1000, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0
    )
    assert model['roi_head']['bbox_head']['loss_bbox'] == dict(type='SmoothL1Loss', beta=1.0, loss_weight=1.0)
    assert model['roi_head']['bbox_roi_extractor']['roi_layer'] == dict(
        type='RoIAlign', output_size=7, sampling_ratio=2
    )
    assert model['data_preprocessor'] == dict(
        type='DetDataPreprocessor', mean=NORM['mean'], std=NORM['std'], bgr_to_rgb=True, pad_size_divisor=32
    )
    assert new['train_dataloader']['dataset']['pipeline'] == [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='RandomResize', scale=[(1333, 640), (1333, 800)], keep_ratio=True),
        dict(type='RandomFlip', prob=0.5),
        dict(type='PackDetInputs'),
    ]
    assert [step['type'] for step in new['test_dataloader']['dataset']['pipeline']] == [
        'LoadImageFromFile', 'Resize', 'PackDetInputs',
    ]  # fmt: skip
    assert new['test_dataloader']['dataset']['pipeline'][1] == dict(
        type='Resize', scale=(1333, 800), keep_ratio=True
    )
    assert new['optim_wrapper']['paramwise_cfg'] == dict(norm_decay_mult=0.0)
    assert new['train_cfg'] == dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=3)
    assert new['default_hooks'] == dict(
        checkpoint=dict(type='CheckpointHook', interval=2), logger=dict(type='LoggerHook', interval=10)
    )
    assert 'resume' not in new and new['load_from'] is None


def faster_rcnn_2x() -> dict:
    """As mmdetection 2.x writes it: heads are today's, the run and the data are not."""
    old = faster_rcnn_1x()
    new = translate(old, 'x')
    model = new['model']
    del model['data_preprocessor']
    model['pretrained'] = model['backbone'].pop('init_cfg')['checkpoint']
    old.update(
        model=model, runner=dict(type='IterBasedRunner', max_iters=900), fp16=dict(loss_scale=512.0),
        lr_config=dict(policy='CosineAnnealing', min_lr=1e-5, by_epoch=False, warmup=None),
        evaluation=dict(interval=100, metric=['bbox'], save_best='bbox_mAP', jsonfile_prefix='x'),
        log_config=dict(interval=5, hooks=[dict(type='TextLoggerHook'), dict(type='TensorboardLoggerHook')]),
        custom_hooks=[dict(type='NumClassCheckHook')],
    )  # fmt: skip
    del old['total_epochs'], old['train_cfg'], old['test_cfg']
    train = old['data']['train']
    old['data'] = dict(
        samples_per_gpu=3, workers_per_gpu=0, test_dataloader=dict(samples_per_gpu=4), val=old['data']['val'],
        test=[old['data']['test'], dict(old['data']['test'], classes=('a', 'b'))],
        train=dict(type='RepeatDataset', times=2, dataset=dict(
            train, data_root='d/', ann_file=['a.json', 'b.json'], img_prefix='i/', filter_empty_gt=False,
        )),
    )  # fmt: skip
    return old


def test_a_config_of_mmdetection_2x(said):
    old = faster_rcnn_2x()
    assert version_of(old) == '2.x'
    new = translate(old, 'old.py')
    assert said[-1].endswith('without counterpart, and left out: evaluation.jsonfile_prefix')
    assert new['model']['roi_head']['bbox_head']['num_classes'] == 80  # was without the background already
    assert new['train_cfg'] == dict(type='IterBasedTrainLoop', max_iters=900, val_interval=100)
    assert new['param_scheduler'] == [
        dict(type='CosineAnnealingLR', T_max=900, eta_min=1e-5, begin=0, end=900, by_epoch=False)
    ]
    assert new['optim_wrapper']['type'] == 'AmpOptimWrapper' and new['optim_wrapper']['loss_scale'] == 512.0
    repeated = new['train_dataloader']['dataset']
    assert (repeated['type'], repeated['times'], repeated['dataset']['type']) == ('RepeatDataset', 2, 'ConcatDataset')
    first, second = repeated['dataset']['datasets']
    assert (first['ann_file'], second['ann_file'], first['data_root']) == ('a.json', 'b.json', 'd/')
    assert first['data_prefix'] == dict(img='i/') and first['filter_cfg']['filter_empty_gt'] is False
    assert new['test_dataloader']['batch_size'] == 4 and new['val_dataloader']['batch_size'] == 1
    assert new['test_dataloader']['dataset']['datasets'][1]['metainfo'] == dict(classes=('a', 'b'))
    assert new['default_hooks']['checkpoint']['save_best'] == 'bbox_mAP' and new['custom_hooks'] == []
    assert [b['type'] for b in new['visualizer']['vis_backends']] == ['LocalVisBackend', 'TensorboardVisBackend']


def test_what_has_no_counterpart_is_named(said):
    old = faster_rcnn_1x()
    old['data']['val']['seg_prefix'] = 'x'
    old['test_cfg']['rpn']['nms_post'] = 500
    old['lr_config']['warmup'] = 'exp'
    old['log_config']['hooks'] = [dict(type='PaviLoggerHook')]
    old['workflow'] = [('train', 1), ('val', 1)]
    old['test_cfg'].update(keep_all_stages=True)
    assert translate(old, 'x')['model']['test_cfg']['rcnn']['keep_all_stages'] is True
    text = said[-1]
    for name in (
        'data.val.seg_prefix', 'test_cfg.rpn.nms_post',
        "lr_config.warmup='exp'", 'PaviLoggerHook', 'workflow=',
    ):  # fmt: skip
        assert name in text
    old['lr_config'] = dict(policy='cyclic')
    with pytest.raises(UserError, match="policy='cyclic' has no counterpart"):
        translate(old, 'x')
    with pytest.raises(UserError, match='cannot be translated: KeyError'):
        translate(dict(old, data=dict(train=dict(type='CocoDataset'))), 'x')


def views_of(old: dict, image: Path) -> list[tuple]:
    """(size, flip_direction) of what --tta looks at, and the first of them by the plain pipeline."""
    cfg = Config(translate(old, 'x'))
    dataset = cfg.test_dataloader.dataset
    plain = Compose(build_steps(dataset.pipeline))(dict(img_path=str(image), img_id=0))['data_samples']
    use_tta(cfg)
    packed = Compose(build_steps(dataset.pipeline))(dict(img_path=str(image), img_id=0))
    samples = packed['data_samples']
    assert plain.img_shape == samples[0].img_shape and plain.scale_factor == samples[0].scale_factor
    assert [tuple(view.shape[1:]) for view in packed['inputs']] == [sample.img_shape for sample in samples]
    return [(sample.img_shape, sample.flip_direction if sample.flip else None) for sample in samples]


@pytest.fixture
def old_image(tmp_path) -> Path:
    """60 x 40 pixels."""
    cv2.imwrite(str(tmp_path / 'a.png'), np.zeros((40, 60, 3), np.uint8))
    return tmp_path / 'a.png'


def test_scales_and_flips_of_a_test_become_views(said, old_image):
    """MultiScaleFlipAug of 1.x and 2.x: each scale, as it is and in each flip, in that order."""
    old = faster_rcnn_1x()
    steps = old['data']['test']['pipeline']
    steps[1].update(flip=True, img_scale=[(90, 60), (1000, 20)], flip_direction=['horizontal', 'vertical'])
    assert views_of(old, old_image) == [
        (size, flip) for size in ((60, 90), (20, 30)) for flip in (None, 'horizontal', 'vertical')
    ]
    assert said[0] == ('x is of mmdetection 1.x; it is translated (tools/print_config.py shows it); --tta tests in all '
                       'its scales and flips')  # fmt: skip
    old = faster_rcnn_1x()
    step = old['data']['test']['pipeline'][1]
    del step['img_scale']
    step.update(scale_factor=[0.5, 2.0])
    assert views_of(old, old_image) == [((20, 30), None), ((80, 120), None)]
    assert 'tta_pipeline' not in translate(faster_rcnn_1x(), 'x')  # a single view
    several = faster_rcnn_2x()
    for part in several['data']['test']:
        part['pipeline'][1].update(flip=True)
    use_tta(cfg := Config(translate(several, 'x')))
    first, second = cfg.test_dataloader.dataset.datasets
    assert first.pipeline == second.pipeline and first.pipeline[-1].type == 'TestTimeAug'
    assert 'tta_pipeline' not in first


def test_scales_and_flips_of_the_release_become_views(recipes, said, old_image):
    """0.x: several img_scale of data.test, and a flip_ratio above 0."""
    several = dict(img_scale=[(90, 90), (45, 45)], flip_ratio=0.5)
    old = copy.deepcopy(recipes['offical_cfgs/faster_rcnn_r50_fpn_1x'])
    old['data']['test'].update(several)
    assert views_of(old, old_image) == [(size, flip) for size in ((60, 90), (30, 45)) for flip in (None, 'horizontal')]
    old = copy.deepcopy(recipes['offical_cfgs/pascal_voc/ssd300_voc'])
    old['data']['test'].update(several)
    steps = translate(old, 'x')['tta_pipeline'][-1]['transforms']
    assert [[step['type'] for step in choices] for choices in steps] == [
        ['Resize'] * 2, ['RandomFlip'] * 2, ['LoadAnnotations'], ['PackDetInputs'],  # VOCMetric wants the objects
    ]  # fmt: skip


def test_deformable_parts_and_ssd_get_mmdetection_3s_names(recipes):
    dcn = translate(recipes['offical_cfgs/dcn/faster_rcnn_mdconv_c3-c5_r50_fpn_1x'], 'x')['model']['backbone']['dcn']
    assert dcn == dict(type='DCNv2', deform_groups=1, fallback_on_stride=False)
    pool = translate(recipes['offical_cfgs/dcn/faster_rcnn_mdpool_r50_fpn_1x'], 'x')['model']['roi_head']
    assert pool['bbox_roi_extractor']['roi_layer'] == dict(
        type='ModulatedDeformRoIPoolPack', output_size=7, output_channels=256, gamma=0.1, sampling_ratio=4
    )
    ssd = translate(recipes['offical_cfgs/pascal_voc/ssd512_voc'], 'x')
    assert ssd['model']['neck'] == dict(
        type='SSDNeck', in_channels=(512, 1024), out_channels=(512, 1024, 512, 256, 256, 256, 256),
        level_strides=(2, 2, 2, 2, 1), level_paddings=(1, 1, 1, 1, 1), last_kernel_size=4, l2_norm_scale=20,
    )  # fmt: skip
    assert ssd['model']['bbox_head']['anchor_generator']['basesize_ratio_range'] == (0.15, 0.9)
    assert [step['type'] for step in ssd['train_dataloader']['dataset']['dataset']['datasets'][0]['pipeline']] == [
        'LoadImageFromFile', 'LoadAnnotations', 'PhotoMetricDistortion', 'Expand', 'MinIoURandomCrop', 'Resize',
        'RandomFlip', 'PackDetInputs',
    ]  # fmt: skip
    assert ssd['test_evaluator'] == dict(type='VOCMetric', metric='mAP', eval_mode='11points')


def test_a_config_of_today_is_left_alone(tmp_path):
    assert not is_legacy(load_config('configs/cbn/mask_rcnn_r50_fpn_1x.py').to_dict())
    assert not is_legacy(dict(data=dict(x=1), train_dataloader={}))
    old = tmp_path / 'old.py'
    old.write_text('\n'.join(f'{key} = {value!r}' for key, value in faster_rcnn_1x().items()))
    cfg = load_config(old, {'optim_wrapper.optimizer.lr': 0.1})
    assert cfg.optim_wrapper.optimizer.lr == 0.1 and cfg.filename == str(old)
    written = tmp_path / 'new.py'
    written.write_text(cfg.pretty_text)
    assert load_config(written).to_dict() == cfg.to_dict()  # what is written needs no translation


def test_a_command_writes_the_translation(tmp_path, run_tool):
    old, new = tmp_path / 'old.py', tmp_path / 'new.py'
    old.write_text('\n'.join(f'{key} = {value!r}' for key, value in faster_rcnn_1x().items()))
    assert run_tool('print_config.py', old, '--out', new)[0] == 0
    assert load_config(new).to_dict() == load_config(old).to_dict()
    status, _, err = run_tool('print_config.py', old, '--out', new)
    assert status == 2 and f'--out {new}: a new file that ends with .py is needed' in err


def test_paths_of_the_release(tmp_path, said, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ('configs/cbn/a.py', 'configs/faster_rcnn/a.py', 'configs/x/b.py', 'configs/y/b.py'):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text('')
    assert modern_path('configs/offical_cfgs/dcn/a.py') == 'configs/faster_rcnn/a.py'
    assert 'configs/offical_cfgs/dcn/a.py is configs/faster_rcnn/a.py here' in said
    for same in ('configs/offical_cfgs/b.py', 'configs/offical_cfgs/c.py', 'configs/cbn/a.py'):  # two, none, its own
        assert modern_path(same) == same
