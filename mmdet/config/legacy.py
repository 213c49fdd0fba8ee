"""Configs of mmdetection 0.x (the method's release among them), 1.x and 2.x, in today's vocabulary.

A file is of the old kind if it has top-level keys of theirs (`data`, `optimizer`, `total_epochs`, ...) and none of
ours. `TABLE` says what becomes of each part; what has no counterpart is named in one line. The steps do not ask for the
version: each looks for what is unmistakable, so that one way leads from all of them.

    top level     data, optimizer, lr_config, ...        -> train_dataloader, optim_wrapper, param_scheduler, ...
    0.x           data.train.img_scale, flip_ratio, ...  -> a pipeline, and data_preprocessor
    0.x, 1.x      heads beside the backbone, num_classes with the background, anchor_scales, target_stds, iou_thr
                  -> roi_head, num_classes without, anchor_generator, bbox_coder, iou_threshold
    0.x           normalize=dict(type='GN', frozen=False) -> norm_cfg=dict(type='GN', requires_grad=True)
"""

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmdet.config.errors import UserError, at_most, say
from mmdet.config.mmdet3 import KEYS_OF_2X
from mmdet.config.shipped import shipped_folder
from mmdet.config.values import walk

_OURS = (
    'train_dataloader', 'val_dataloader', 'test_dataloader', 'optim_wrapper', 'param_scheduler', 'val_evaluator',
    'test_evaluator', 'default_hooks',
)  # fmt: skip
_SPLITS = ('train', 'val', 'test')


def modern_path(path: str) -> str:
    """Where a recipe of configs/offical_cfgs, in the method's release, stands here: under its name below configs.

    A file that is there is taken as it is.
    """
    before, found, after = path.partition('offical_cfgs/')
    if not found or os.path.exists(path):
        return path
    folder = before if os.path.isdir(before) else shipped_folder()
    files = Path(folder).rglob(os.path.basename(after))
    same = [str(file) for file in files if file.parent.name != 'cbn']  # the method's own, beside them in the release
    if len(same) != 1:
        return path
    say(f'{path} is {same[0]} here')
    return same[0]


def is_legacy(cfg: dict) -> bool:
    """Whether a whole config is of mmdetection 0.x to 2.x, by its top-level keys."""
    return any(key in cfg for key in KEYS_OF_2X) and not any(key in cfg for key in _OURS)


def version_of(cfg: dict) -> str:
    """Which of them, for messages."""
    keys = {path.rpartition('.')[2] for path, _ in walk(cfg)}
    if keys & {'normalize', 'with_crowd', 'flip_ratio'} and not keys & {'pipeline', 'flip'}:
        return '0.x'
    beside = 'bbox_roi_extractor' in (cfg.get('model') or {})
    return '1.x' if beside or keys & {'anchor_strides', 'imgs_per_gpu'} else '2.x'


def translate(cfg: dict, origin: str) -> dict:
    """An old config in today's vocabulary, and a line that says so and names what has no counterpart.

    Args:
        cfg: all of it, its bases resolved.
        origin: what messages call it.

    Raises:
        UserError: a part of another kind than it has in those versions.
    """
    lost: list[str] = []
    try:
        new = _translate(copy.deepcopy(cfg), lost)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f'{origin}: a config of mmdetection {version_of(cfg)} that cannot be translated: '
                        f'{type(error).__name__}: {error}') from error
    more = '; --tta tests in all its scales and flips' if 'tta_pipeline' in new else ''
    more += f'; without counterpart, and left out: {at_most(lost, 12)}' if lost else ''
    say(f'{origin} is of mmdetection {version_of(cfg)}; it is translated (tools/print_config.py shows it){more}')
    return new


def _translate(old: dict, lost: list[str]) -> dict:
    model = _model(old.pop('model', None), old.pop('train_cfg', None), old.pop('test_cfg', None), lost)
    new: dict[str, Any] = dict(default_scope='mmdet')
    if model is not None:
        new['model'] = model
    evaluation = old.get('evaluation')
    new.update(_data(old.pop('data', None) or {}, model or {}, evaluation or {}, lost))
    for key, translated in TABLE['run'].items():
        if key in old:
            translated(old.pop(key), new, lost)
    _add_schedule(old, new, lost)
    if not new.get('optim_wrapper', {}).get('optimizer'):
        new.pop('optim_wrapper', None)
    for key in list(old):
        if key.endswith('_pipeline') or key in ('img_norm_cfg', 'normalize'):  # variables of the file, used by now
            del old[key]
    return {**old, **new}


# ---------------------------------------------------------------------- the model


def _model(model: dict | None, train_cfg: dict | None, test_cfg: dict | None, lost: list[str]) -> dict | None:
    if model is None:
        return None
    train_cfg, test_cfg = (dict(model.pop(name, None) or cfg or {})
                           for name, cfg in (('train_cfg', train_cfg), ('test_cfg', test_cfg)))  # fmt: skip
    background = _counts_background(model)
    _norms(model)
    pretrained = model.pop('pretrained', None)
    if pretrained:
        model['backbone']['init_cfg'] = dict(
            type='Pretrained', checkpoint=pretrained.replace('modelzoo://', 'torchvision://')
        )
    context = dict(train_cfg=train_cfg, model=model, lost=lost)
    for path, part in list(_parts(model)):
        if background and 'num_classes' in part and 'rpn' not in path:
            part['num_classes'] -= 1
        TABLE['model'].get(part['type'], lambda part, **context: None)(part, **context)
    if 'bbox_roi_extractor' in model or 'mask_roi_extractor' in model:
        _gather_roi_head(model, train_cfg)
    if test_cfg.pop('keep_all_stages', False):
        test_cfg['rcnn']['keep_all_stages'] = True
    for settings in (train_cfg, test_cfg):
        for name in ('rpn', 'rpn_proposal', 'rcnn'):
            stages = settings.get(name)
            for stage in stages if isinstance(stages, (list, tuple)) else [stages]:
                _settings(stage, f'test_cfg.{name}', lost)
        _settings(settings, 'test_cfg', lost)
    if train_cfg:
        model['train_cfg'] = train_cfg
    if test_cfg:
        model['test_cfg'] = test_cfg
    return model


def _parts(model: dict) -> Iterator[tuple[str, dict]]:
    return ((path, part) for path, part in walk(model) if isinstance(part, dict) and isinstance(part.get('type'), str))


def _counts_background(model: dict) -> bool:
    """Whether class 0 is the background, as before 2.0: RoI heads stood beside the backbone, anchors in their heads."""
    return 'bbox_roi_extractor' in model or any('anchor_strides' in part for _, part in _parts(model))


def _norms(model: dict) -> None:
    """0.x: normalize=dict(type, frozen, ...), None for none."""
    for part in [model, *(part for _, part in _parts(model))]:
        if 'normalize' in part:
            norm = part.pop('normalize')
            if norm is not None:
                frozen = norm.pop('frozen', False)
                part['norm_cfg'] = dict(norm, requires_grad=not frozen)
        if 'activation' in part:
            kind = part.pop('activation')
            part['act_cfg'] = kind and dict(type={'relu': 'ReLU'}.get(kind, kind))


def _gather_roi_head(model: dict, train_cfg: dict) -> None:
    names = ('bbox_roi_extractor', 'bbox_head', 'mask_roi_extractor', 'mask_head', 'shared_head')
    head = dict(type='StandardRoIHead', **{name: model.pop(name) for name in names if name in model})
    if model['type'] == 'CascadeRCNN':
        head = {**head, 'type': 'CascadeRoIHead', 'num_stages': model.pop('num_stages'),
                'stage_loss_weights': train_cfg.pop('stage_loss_weights')}  # fmt: skip
    model['roi_head'] = head


def _anchors(part: dict) -> None:
    """Anchors and box coder as parts of their own. Scales are in strides in all versions."""
    names = dict(
        anchor_scales='scales', anchor_ratios='ratios', anchor_strides='strides', anchor_base_sizes='base_sizes',
        octave_base_scale='octave_base_scale', scales_per_octave='scales_per_octave',
    )  # fmt: skip
    given = {new: part.pop(old) for old, new in names.items() if part.get(old) is not None}
    if given:
        part['anchor_generator'] = dict(type='AnchorGenerator', **given)
    _box_coder(part)


def _box_coder(part: dict, **context) -> None:
    given = {key: part.pop(key) for key in ('target_means', 'target_stds') if key in part}
    if given:
        part['bbox_coder'] = dict(type='DeltaXYWHBBoxCoder', **given)


def _rpn_head(part: dict, train_cfg: dict, **context) -> None:
    old = 'anchor_strides' in part
    _anchors(part)
    beta = (train_cfg.get('rpn') or {}).pop('smoothl1_beta', 1 / 9)
    if old or 'use_sigmoid_cls' in part:
        part.setdefault('loss_cls', dict(type='CrossEntropyLoss', use_sigmoid=part.pop('use_sigmoid_cls', True)))
        part.setdefault('loss_bbox', dict(type='SmoothL1Loss', beta=beta, loss_weight=1.0))


def _retina_head(part: dict, train_cfg: dict, **context) -> None:
    old = 'anchor_strides' in part
    _anchors(part)
    given = {key: train_cfg.pop(key) for key in ('smoothl1_beta', 'gamma', 'alpha') if key in train_cfg}
    if old:
        focal = dict(gamma=given.get('gamma', 2.0), alpha=given.get('alpha', 0.25))
        part.setdefault('loss_cls', dict(type='FocalLoss', use_sigmoid=True, **focal))
        part.setdefault('loss_bbox', dict(type='SmoothL1Loss', beta=given.get('smoothl1_beta', 0.11)))


def _ssd_head(part: dict, train_cfg: dict, **context) -> None:
    if 'anchor_strides' not in part:
        return
    part['anchor_generator'] = dict(
        type='SSDAnchorGenerator', scale_major=False, input_size=part.pop('input_size'),
        basesize_ratio_range=tuple(part.pop('basesize_ratio_range')), strides=part.pop('anchor_strides'),
        ratios=part.pop('anchor_ratios'),
    )  # fmt: skip
    _box_coder(part)
    train_cfg.setdefault('sampler', dict(type='PseudoSampler'))


def _ssd_vgg(part: dict, model: dict, **context) -> None:
    """The layers behind VGG-16 and the norm of its first map were the backbone's."""
    size, scale = part.pop('input_size', None), part.pop('l2_norm_scale', 20)
    if model.get('neck') is not None or size is None:
        return
    more = dict(level_strides=(2, 2, 1, 1), level_paddings=(1, 1, 0, 0))
    if size == 512:
        more = dict(level_strides=(2, 2, 2, 2, 1), level_paddings=(1,) * 5, last_kernel_size=4)
    channels = (512, 1024, 512) + (256,) * (len(more['level_strides']) - 1)
    model['neck'] = dict(type='SSDNeck', in_channels=(512, 1024), out_channels=channels, l2_norm_scale=scale, **more)


def _bbox_head(part: dict, **context) -> None:
    old = 'target_stds' in part
    _box_coder(part)
    if part['type'] == 'SharedFCBBoxHead':  # 1.x
        part['type'] = 'ConvFCBBoxHead' if part.get('num_fcs', 2) != 2 else 'Shared2FCBBoxHead'
        layers = part.pop('num_fcs', 2)
        if part['type'] == 'ConvFCBBoxHead':
            part['num_shared_fcs'] = layers
    if old:
        part.setdefault('loss_cls', dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0))
        part.setdefault('loss_bbox', dict(type='SmoothL1Loss', beta=1.0, loss_weight=1.0))


def _mask_head(part: dict, **context) -> None:
    method, ratio = part.pop('upsample_method', None), part.pop('upsample_ratio', 2)
    if method:
        part['upsample_cfg'] = dict(type=method, scale_factor=ratio)


def _resnet(part: dict, lost: list[str], **context) -> None:
    dcn = part.get('dcn')
    if not dcn:
        return
    modulated = dcn.pop('modulated', False)
    dcn.setdefault('type', 'DCNv2' if modulated else 'DCN')
    if dcn.pop('groups', part.get('groups', 1)) != part.get('groups', 1):
        lost.append('backbone.dcn.groups')
    if 'deformable_groups' in dcn:
        dcn['deform_groups'] = dcn.pop('deformable_groups')


def _fpn(part: dict, **context) -> None:
    on_input = part.pop('extra_convs_on_inputs', True)  # 0.x had no choice
    if part.get('add_extra_convs') is True:
        part['add_extra_convs'] = 'on_input' if on_input else 'on_output'


def _roi_extractor(part: dict, lost: list[str], **context) -> None:
    layer = part['roi_layer']
    for old, new in (('out_size', 'output_size'), ('sample_num', 'sampling_ratio'), ('out_channels', 'output_channels'),
                     ('trans_std', 'gamma'), ('sample_per_part', 'sampling_ratio')):  # fmt: skip
        if old in layer:
            layer[new] = layer.pop(old)
    if layer['type'].endswith('DeformRoIPoolingPack'):
        layer['type'] = layer['type'].replace('PoolingPack', 'PoolPack')
        layer.setdefault('sampling_ratio', 4)
        only = dict(no_trans=False, group_size=1, part_size=layer['output_size'])
        lost += [f'roi_layer.{key}' for key, value in only.items() if layer.pop(key, value) not in (value, None)]


def _settings(cfg: dict | None, path: str, lost: list[str]) -> None:
    """Of one stage, in place: NMS as a part of its own, one limit of detections."""
    if not isinstance(cfg, dict):
        return
    if 'nms_thr' in cfg:
        cfg['nms'] = dict(type='nms', iou_threshold=cfg.pop('nms_thr'))
    if isinstance(cfg.get('nms'), dict) and 'iou_thr' in cfg['nms']:
        cfg['nms']['iou_threshold'] = cfg['nms'].pop('iou_thr')
    most, of_level = cfg.pop('max_num', None), cfg.pop('nms_post', None)
    if most is not None:
        cfg.setdefault('max_per_img', most)
    if of_level is not None and of_level < cfg.get('max_per_img', 0):  # of each level; more are cut by the sum anyway
        lost.append(f'{path}.nms_post')
    if not cfg.get('nms_across_levels', True):
        del cfg['nms_across_levels']


# ---------------------------------------------------------------------- data


def _data(data: dict, model: dict, evaluation: dict, lost: list[str]) -> dict:
    """The loaders and evaluators; the model's data_preprocessor is filled in."""
    new: dict[str, Any] = {}
    batch = data.pop('samples_per_gpu', data.pop('imgs_per_gpu', None))
    workers = data.pop('workers_per_gpu', None)
    found: dict[str, dict] = {}
    for split in _SPLITS:
        dataset = data.pop(split, None)
        own = data.pop(f'{split}_dataloader', {})
        if dataset is None:
            continue
        training = split == 'train'
        preprocessor: dict[str, Any] = {}
        loader = dict(
            batch_size=own.pop('samples_per_gpu', (batch or 1) if training else 1),
            num_workers=own.pop('workers_per_gpu', workers or 0),
            sampler=dict(type='DefaultSampler', shuffle=training),
            dataset=_dataset(dataset, training, preprocessor, f'data.{split}', lost),
        )
        if loader['num_workers']:
            loader['persistent_workers'] = own.pop('persistent_workers', True)
        if training:
            loader['batch_sampler'] = dict(type='AspectRatioBatchSampler')
        else:
            new[f'{split}_evaluator'] = _evaluator(loader['dataset'], model, evaluation, lost)
        lost += [f'data.{split}_dataloader.{key}' for key in own]
        parts = [part for _, part in walk(loader) if isinstance(part, dict)]
        views = [part.pop('tta_pipeline') for part in parts if 'tta_pipeline' in part]
        if split == 'test' and views:
            new['tta_pipeline'] = views[0]
        new[f'{split}_dataloader'], found[split] = loader, preprocessor
    lost += [f'data.{key}' for key in data]
    if found and model:
        model['data_preprocessor'] = dict(type='DetDataPreprocessor', **next(iter(found.values())))
        lost += [f'data.{split}.img_norm_cfg' for split, other in found.items() if other != next(iter(found.values()))]
    for split, name in (('val', 'ValLoop'), ('test', 'TestLoop')):
        if f'{split}_dataloader' in new:
            new[f'{split}_cfg'] = dict(type=name)
    return new


def _dataset(cfg: Any, training: bool, preprocessor: dict, path: str, lost: list[str]) -> dict:
    inner = (training, preprocessor, path, lost)
    if isinstance(cfg, (list, tuple)):
        return dict(type='ConcatDataset', datasets=[_dataset(part, *inner) for part in cfg])
    if 'dataset' in cfg:
        return dict(cfg, dataset=_dataset(cfg['dataset'], *inner))
    if 'datasets' in cfg:
        return dict(cfg, datasets=[_dataset(part, *inner) for part in cfg['datasets']])
    if isinstance(cfg['ann_file'], (list, tuple)):
        prefixes = cfg.get('img_prefix')
        prefixes = prefixes if isinstance(prefixes, (list, tuple)) else [prefixes] * len(cfg['ann_file'])
        parts = [dict(copy.deepcopy(cfg), ann_file=a, img_prefix=p) for a, p in zip(cfg['ann_file'], prefixes)]
        return dict(type='ConcatDataset', datasets=[_dataset(part, *inner) for part in parts])
    kind = _KINDS.get(cfg['type'], _KINDS['CocoDataset'])
    new = {key: cfg.pop(key) for key in ('type', 'data_root', 'ann_file', 'proposal_file') if cfg.get(key) is not None}
    new['data_prefix'] = {kind['prefix']: cfg.pop('img_prefix', '') or ''}
    classes = cfg.pop('classes', None)
    if classes is not None:
        new['metainfo'] = dict(classes=classes)
    if cfg.pop('test_mode', not training) and not training:
        new['test_mode'] = True
    filters = dict(filter_empty_gt=cfg.pop('filter_empty_gt', True), min_size=32)
    if training:
        new['filter_cfg'] = filters
    steps = cfg.pop('pipeline', None) or _steps_of_0x(cfg, training, 'proposal_file' in new, path, lost)
    new['pipeline'], views = _plain_and_views(_pipeline(steps, preprocessor, path, lost))
    names = [step['type'] for step in new['pipeline']]
    if not training and kind['metric'] != 'CocoMetric' and 'LoadAnnotations' not in names:
        load = dict(type='LoadAnnotations', with_bbox=True)  # the metric compares with them
        new['pipeline'].insert(-1, load)
        if views:
            views[-1]['transforms'].insert(-1, [load])
    if views:
        new['tta_pipeline'] = views  # `_data` moves it
    lost += [f'{path}.{key}' for key, value in cfg.items() if key != 'type' and value]
    return new


# What a data set is evaluated by, and what its img_prefix is called.
_KINDS = {
    'CocoDataset': dict(metric='CocoMetric', prefix='img'),
    'VOCDataset': dict(metric='VOCMetric', prefix='sub_data_root'),
    'XMLDataset': dict(metric='VOCMetric', prefix='sub_data_root'),
}


def _evaluator(dataset: dict, model: dict, evaluation: dict, lost: list[str]) -> dict:
    while 'dataset' in dataset or 'datasets' in dataset:
        dataset = dataset['dataset'] if 'dataset' in dataset else dataset['datasets'][0]
    ann_file = os.path.join(dataset.get('data_root') or '', dataset['ann_file'])
    metric = evaluation.get('metric')
    if _KINDS.get(dataset['type'], {}).get('metric') == 'VOCMetric':
        place = ann_file + ''.join(dataset['data_prefix'].values())
        return dict(type='VOCMetric', metric='mAP', eval_mode='11points' if '2007' in place else 'area')
    if metric is None:
        masks = (model.get('roi_head') or {}).get('mask_head')
        metric = 'proposal' if model.get('type') == 'RPN' else ['bbox', 'segm'] if masks else 'bbox'
    new = dict(type='CocoMetric', ann_file=ann_file, metric=metric)
    new.update({key: evaluation[key] for key in ('classwise', 'proposal_nums', 'iou_thrs') if key in evaluation})
    return new


def _steps_of_0x(cfg: dict, training: bool, proposals: bool, path: str, lost: list[str]) -> list[dict]:
    """The pipeline, as 1.x would write it, of a data set with the options of 0.x."""
    norm, divisor = cfg.pop('img_norm_cfg', None), cfg.pop('size_divisor', None)
    scale, mode = cfg.pop('img_scale'), cfg.pop('multiscale_mode', 'value')
    flip, keep = cfg.pop('flip_ratio', 0), cfg.pop('resize_keep_ratio', True)
    masks, extra = cfg.pop('with_mask', False), cfg.pop('extra_aug', None) or {}
    count = cfg.pop('num_max_proposals', 1000)
    cfg.pop('with_crowd', None)  # it is up to the assigners' ignore_iof_thr
    cfg.pop('with_label', None)  # RPNs look at none
    steps = [dict(type='LoadImageFromFile')]
    if proposals:
        steps.append(dict(type='LoadProposals', num_max_proposals=count))
    if training:
        steps.append(dict(type='LoadAnnotations', with_bbox=True, with_mask=masks))
    for key, kind in (('photo_metric_distortion', 'PhotoMetricDistortion'), ('expand', 'Expand'),
                      ('random_crop', 'MinIoURandomCrop')):  # fmt: skip
        if key in extra:
            steps.append(dict(type=kind, **extra.pop(key)))
    lost += [f'{path}.extra_aug.{key}' for key in extra]
    resize, flips = dict(type='Resize', keep_ratio=keep), dict(type='RandomFlip')
    if training:
        resize.update(img_scale=scale, multiscale_mode=mode)
        flips.update(flip_ratio=flip)
    moved = [resize, flips, *([dict(type='Normalize', **norm)] if norm else []),
             dict(type='Pad', size_divisor=divisor or 1), dict(type='Collect')]  # fmt: skip
    if training:
        return [*steps, *moved]
    return [*steps, dict(type='MultiScaleFlipAug', img_scale=scale, flip=flip > 0, transforms=moved)]


def _pipeline(steps: list[dict], preprocessor: dict, path: str, lost: list[str]) -> list[dict]:
    new = []
    for step in copy.deepcopy(list(steps)):
        translated = TABLE['pipeline'].get(step['type'], lambda step, *rest: [step])
        new += translated(step, preprocessor, path, lost)
    return new


def _normalize(step: dict, preprocessor: dict, path: str, lost: list[str]) -> list[dict]:
    preprocessor.update(mean=list(step['mean']), std=list(step['std']), bgr_to_rgb=step.get('to_rgb', True))
    return []


def _pad(step: dict, preprocessor: dict, path: str, lost: list[str]) -> list[dict]:
    if not step.get('size_divisor'):
        return [step]
    preprocessor['pad_size_divisor'] = step['size_divisor']
    return []


def _load_image(step: dict, preprocessor: dict, path: str, lost: list[str]) -> list[dict]:
    if step.pop('file_client_args', dict(backend='disk')) != dict(backend='disk'):
        lost.append(f'{path}.file_client_args')
    return [step]


def _load_annotations(step: dict, preprocessor: dict, path: str, lost: list[str]) -> list[dict]:
    step.pop('with_label', None)  # RPNs look at none
    return [step]


def _resize(step: dict, preprocessor: dict, path: str, lost: list[str]) -> list[dict]:
    """One scale, several to choose from, a range between two, or a range of ratios."""
    scale, ratios = step.pop('img_scale', None), step.pop('ratio_range', None)
    mode = step.pop('multiscale_mode', 'range')
    lost += [f'{path}.Resize.{key}' for key in ('override', 'bbox_clip_border') if step.pop(key, None)]
    several = isinstance(scale, (list, tuple)) and isinstance(scale[0], (list, tuple))
    scales = [tuple(s) for s in scale] if several else [tuple(scale)] if scale else []
    if ratios is not None:
        return [dict(step, type='RandomResize', scale=scales[0], ratio_range=tuple(ratios))]
    if len(scales) > 1 and mode == 'range':
        return [dict(step, type='RandomResize', scale=scales)]
    if len(scales) > 1:
        return [dict(step, type='RandomChoiceResize', scales=scales)]
    return [dict(step, scale=scales[0])] if scales else [step]


def _flip(step: dict, preprocessor: dict, path: str, lost: list[str]) -> list[dict]:
    if 'flip_ratio' in step:
        step['prob'] = step.pop('flip_ratio')
    return [step] if step.get('prob', 1) else []


def _several_tests(step: dict, preprocessor: dict, path: str, lost: list[str]) -> list[dict]:
    """MultiScaleFlipAug: its scales and flips are views; the first of each is how a plain test is done."""
    scale, factors = step.get('img_scale'), _listed(step.get('scale_factor'))
    scales = scale if scale and isinstance(scale[0], (list, tuple)) else [scale] if scale else []
    sizes = [dict(img_scale=one) for one in scales] or [dict(scale_factor=one) for one in factors] or [{}]
    directions = _listed(step.get('flip_direction', 'horizontal')) if step.get('flip') else []
    flips = [dict(type='RandomFlip', prob=0.0)]
    flips += [dict(type='RandomFlip', prob=1.0, direction=one) for one in directions]
    choices = []
    for part in step['transforms']:
        if part['type'] == 'RandomFlip':
            choices.append(flips)
            continue
        parts = [dict(part, **size) for size in sizes] if part['type'] == 'Resize' else [part]
        choices.append([new for one in parts for new in _pipeline([one], preprocessor, path, lost)])
    return [dict(type='TestTimeAug', transforms=[steps for steps in choices if steps])]


def _listed(value: Any) -> list:
    """One value, several, or None for none."""
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


def _plain_and_views(steps: list[dict]) -> tuple[list[dict], list[dict] | None]:
    """A test pipeline -> with the first view alone, and with all of them where there are several."""
    choices = steps[-1]['transforms'] if steps and steps[-1]['type'] == 'TestTimeAug' else []
    if not choices:
        return steps, None
    plain = [*steps[:-1], *(first for first, *_ in choices if first['type'] != 'RandomFlip')]
    return plain, steps if any(rest for _, *rest in choices) else None


def _collect(step: dict, preprocessor: dict, path: str, lost: list[str]) -> list[dict]:
    return [dict(type='PackDetInputs')]


# ---------------------------------------------------------------------- the run


def _optimizer(cfg: dict, new: dict, lost: list[str]) -> None:
    wrapper = new.setdefault('optim_wrapper', dict(type='OptimWrapper'))
    for old, key in (('paramwise_options', 'paramwise_cfg'), ('paramwise_cfg', 'paramwise_cfg'),
                     ('constructor', 'constructor')):  # fmt: skip
        if old in cfg:
            wrapper[key] = cfg.pop(old)
    wrapper['optimizer'] = cfg


def _optimizer_config(cfg: dict | None, new: dict, lost: list[str]) -> None:
    cfg = dict(cfg or {})
    wrapper = new.setdefault('optim_wrapper', dict(type='OptimWrapper'))
    clip, kind = cfg.pop('grad_clip', None), cfg.pop('type', 'OptimizerHook')
    if clip:
        wrapper['clip_grad'] = clip
    if 'Cumulative' in kind:
        wrapper['accumulative_counts'] = cfg.pop('cumulative_iters', 1)
    if 'Fp16' in kind:
        _fp16(dict(loss_scale=cfg.pop('loss_scale', 512.0)), new, lost)
    lost += [f'optimizer_config.{key}' for key in cfg if key not in ('distributed', 'coalesce', 'bucket_size_mb')]


def _fp16(cfg: dict | None, new: dict, lost: list[str]) -> None:
    if cfg is not None:
        new.setdefault('optim_wrapper', {}).update(type='AmpOptimWrapper', loss_scale=cfg.get('loss_scale', 512.0))


def _checkpoint_config(cfg: dict | None, new: dict, lost: list[str]) -> None:
    cfg = dict(cfg or {})
    known = ('interval', 'by_epoch', 'max_keep_ckpts', 'save_last')
    hook = dict(type='CheckpointHook', **{key: cfg.pop(key) for key in known if key in cfg})
    new.setdefault('default_hooks', {})['checkpoint'] = {**hook, **new.get('default_hooks', {}).get('checkpoint', {})}
    lost += [f'checkpoint_config.{key}' for key in cfg if key != 'create_symlink']


def _evaluation(cfg: dict | None, new: dict, lost: list[str]) -> None:
    cfg = dict(cfg or {})
    loop = new.setdefault('train_cfg', {})
    loop['val_interval'] = cfg.pop('interval', 1)
    if 'start' in cfg:
        loop['val_begin'] = cfg.pop('start')
    best = {key: cfg.pop(key) for key in ('save_best', 'rule') if key in cfg}
    if best:
        new.setdefault('default_hooks', {}).setdefault('checkpoint', dict(type='CheckpointHook')).update(best)
    done = ('metric', 'classwise', 'proposal_nums', 'iou_thrs', 'by_epoch', 'gpu_collect')
    lost += [f'evaluation.{key}' for key in cfg if key not in done]


_BACKENDS = {'TensorboardLoggerHook': 'TensorboardVisBackend', 'WandbLoggerHook': 'WandbVisBackend',
             'MMDetWandbHook': 'WandbVisBackend', 'MlflowLoggerHook': 'MLflowVisBackend'}  # fmt: skip


def _log_config(cfg: dict, new: dict, lost: list[str]) -> None:
    new.setdefault('default_hooks', {})['logger'] = dict(type='LoggerHook', interval=cfg.get('interval', 50))
    kinds = [hook['type'] for hook in cfg.get('hooks', [])]
    backends = [dict(type='LocalVisBackend'), *(dict(type=_BACKENDS[kind]) for kind in kinds if kind in _BACKENDS)]
    if len(backends) > 1:
        new['visualizer'] = dict(type='DetVisualizer', vis_backends=backends)
    lost += [f'log_config: {kind}' for kind in kinds if kind not in _BACKENDS and kind != 'TextLoggerHook']


def _workflow(flow: list, new: dict, lost: list[str]) -> None:
    if [tuple(part) for part in flow] != [('train', 1)]:
        lost.append(f'workflow={flow}')


def _resume_from(path: str | None, new: dict, lost: list[str]) -> None:
    if path:
        new.update(resume=True, load_from=path)


def _hooks(hooks: list, new: dict, lost: list[str]) -> None:
    done_here = ('NumClassCheckHook', 'CheckInvalidLossHook')  # each run checks both
    new['custom_hooks'] = [hook for hook in hooks or [] if hook['type'] not in done_here]


def _environment(*place: str) -> Callable:
    def put(value: Any, new: dict, lost: list[str]) -> None:
        node = new.setdefault('env_cfg', {})
        for key in place[:-1]:
            node = node.setdefault(key, {})
        if value is not None:
            node[place[-1]] = value

    return put


def _dropped(value: Any, new: dict, lost: list[str]) -> None:
    """Given by whoever started the run."""


def _add_schedule(old: dict, new: dict, lost: list[str]) -> None:
    """The loop, and the learning rate over it."""
    runner, epochs = old.pop('runner', None) or {}, old.pop('total_epochs', None)
    lr = old.pop('lr_config', None)
    if epochs is None and not runner:
        return
    most = runner.get('max_epochs', epochs)
    loop = new.setdefault('train_cfg', {})
    if most is not None:
        loop.update(type='EpochBasedTrainLoop', max_epochs=most)
    else:
        loop.update(type='IterBasedTrainLoop', max_iters=runner['max_iters'])
    loop.setdefault('val_interval', 1)
    if 'val_dataloader' not in new:
        del loop['val_interval']
    if lr:
        by_epoch = lr.pop('by_epoch', most is not None)
        end = loop.get('max_epochs', loop.get('max_iters'))
        new['param_scheduler'] = [*_warmup(lr, lost), *_policy(lr, by_epoch, end)]
        lost += [f'lr_config.{key}' for key in lr]


def _warmup(lr: dict, lost: list[str]) -> list[dict]:
    kind, ratio, end = lr.pop('warmup', None), lr.pop('warmup_ratio', 0.1), lr.pop('warmup_iters', 0)
    by_epoch = lr.pop('warmup_by_epoch', False)
    if kind is None or not end:
        return []
    common = dict(by_epoch=by_epoch, begin=0, end=end)
    if kind == 'linear':
        return [dict(type='LinearLR', start_factor=ratio, **common)]
    if kind == 'constant':
        return [dict(type='ConstantLR', factor=ratio, **common)]
    lost.append(f'lr_config.warmup={kind!r}')
    return []


def _policy(lr: dict, by_epoch: bool, end: int) -> list[dict]:
    policy = lr.pop('policy')
    common = dict(begin=0, end=end, by_epoch=by_epoch)
    if policy == 'step':
        step, gamma = lr.pop('step'), lr.pop('gamma', 0.1)
        if isinstance(step, int):
            return [dict(type='StepLR', step_size=step, gamma=gamma, **common)]
        return [dict(type='MultiStepLR', milestones=list(step), gamma=gamma, **common)]
    if policy == 'CosineAnnealing':
        ratio = lr.pop('min_lr_ratio', None)
        low = dict(eta_min_ratio=ratio) if ratio is not None else dict(eta_min=lr.pop('min_lr', 0))
        return [dict(type='CosineAnnealingLR', T_max=end, **low, **common)]
    if policy == 'poly':
        return [dict(type='PolyLR', power=lr.pop('power', 1.0), eta_min=lr.pop('min_lr', 0.0), **common)]
    if policy == 'fixed':
        return []
    raise UserError(f"lr_config.policy={policy!r} has no counterpart here; translate it by hand into param_scheduler "
                    "(known are 'step', 'CosineAnnealing', 'poly', 'fixed')")


# ---------------------------------------------------------------------- the table

TABLE: dict[str, dict[str, Callable]] = {
    # type of a part of the model
    'model': dict(
        ResNet=_resnet, ResNeXt=_resnet, SSDVGG=_ssd_vgg, FPN=_fpn, RPNHead=_rpn_head, RetinaHead=_retina_head,
        SSDHead=_ssd_head, ConvFCBBoxHead=_bbox_head, SharedFCBBoxHead=_bbox_head, BBoxHead=_bbox_head,
        FCNMaskHead=_mask_head, SingleRoIExtractor=_roi_extractor,
    ),
    # type of a step of a pipeline
    'pipeline': dict(
        LoadImageFromFile=_load_image, LoadAnnotations=_load_annotations, Resize=_resize, RandomFlip=_flip,
        Normalize=_normalize, Pad=_pad, MultiScaleFlipAug=_several_tests, Collect=_collect,
        DefaultFormatBundle=lambda *step: [], ImageToTensor=lambda *step: [],
    ),
    # key at the top level
    'run': dict(
        optimizer=_optimizer, optimizer_config=_optimizer_config, fp16=_fp16, evaluation=_evaluation,
        checkpoint_config=_checkpoint_config, log_config=_log_config, workflow=_workflow, resume_from=_resume_from,
        custom_hooks=_hooks, dist_params=_environment('dist_cfg'), cudnn_benchmark=_environment('cudnn_benchmark'),
        opencv_num_threads=_environment('mp_cfg', 'opencv_num_threads'),
        mp_start_method=_environment('mp_cfg', 'mp_start_method'), gpu_ids=_dropped, gpus=_dropped, device=_dropped,
        seed=_dropped, deterministic=_dropped, auto_resume=_dropped,
    ),
}  # fmt: skip
