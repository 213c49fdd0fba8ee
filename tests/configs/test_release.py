"""The recipes of the method's release: each exists, builds at full size and has the release's values.

The release's own values are read from outside the repository (MMDET_TEST_DATA, or ../shared): in its vocabulary, which
`RENAMES` and `MEANINGS` translate. What differs on purpose stands in `DIFFERENCES`, each with its reason.
"""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmdet.config.load import load_config
from mmdet.engine.runner import build_runner
from mmdet.engine.seeding import set_seed
from mmdet.registry import MODELS, TRANSFORMS

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
RELEASE = Path(os.environ.get('MMDET_TEST_DATA', CONFIGS.parents[1] / 'shared' / 'data')).parent
ABSENT = object()

# Recipes that need VOC data, which have a builder of their own.
ELSEWHERE = ('voc0712',)
FOLDERS = ('offical_cfgs', 'offical_cfgs/dcn', 'offical_cfgs/pascal_voc', 'cbn')
RECIPES = sorted(path for folder in FOLDERS for path in CONFIGS.glob(f'{folder}/*_*.py'))

PROPOSALS = 'test_cfg.rpn', 'train_cfg.rpn_proposal'  # one setting for both, there
# (pattern of the release's key, where the value stands here: one place or several)
RENAMES = [
    (r'data\.imgs_per_gpu', 'train_dataloader.batch_size'),
    (r'data\.workers_per_gpu', 'train_dataloader.num_workers'),
    (r'(?:data\.(?:train|val|test)\.)?img_norm_cfg\.to_rgb', 'model.data_preprocessor.bgr_to_rgb'),
    (r'(?:data\.(?:train|val|test)\.)?img_norm_cfg\.(mean|std)', r'model.data_preprocessor.\1'),
    (r'data\.train\.(type|times)', r'train_dataloader.dataset.\1'),
    (r'data\.train\.dataset\.type', 'TRAINED.type'),
    (r'data\.train\.dataset\.ann_file', 'TRAINED ANNOTATIONS'),
    (r'data\.train\.dataset\.img_prefix', 'TRAINED IMAGES'),
    (r'data\.train\.dataset\.img_norm_cfg\.to_rgb', 'model.data_preprocessor.bgr_to_rgb'),
    (r'data\.train\.dataset\.img_norm_cfg\.(mean|std)', r'model.data_preprocessor.\1'),
    (r'data\.train\.dataset\.size_divisor', 'model.data_preprocessor.pad_size_divisor'),
    (r'data\.train\.dataset\.img_scale', 'TRAINED.pipeline Resize.scale'),
    (r'data\.train\.dataset\.resize_keep_ratio', 'TRAINED.pipeline Resize.keep_ratio'),
    (r'data\.train\.dataset\.flip_ratio', 'TRAINED.pipeline RandomFlip.prob'),
    (r'data\.train\.dataset\.with_mask', 'TRAINED.pipeline LoadAnnotations.with_mask'),
    (r'data\.train\.dataset\.test_mode', 'TRAINED.test_mode'),
    (r'data\.train\.dataset\.extra_aug\.photo_metric_distortion\.(.*)', r'TRAINED.pipeline PhotoMetricDistortion.\1'),
    (r'data\.train\.dataset\.extra_aug\.expand\.(.*)', r'TRAINED.pipeline Expand.\1'),
    (r'data\.train\.dataset\.extra_aug\.random_crop\.(.*)', r'TRAINED.pipeline MinIoURandomCrop.\1'),
    (r'data\.(val|test)\.resize_keep_ratio', r'\1_dataloader.dataset.pipeline Resize.keep_ratio'),
    (r'data\.(train|val|test)\.type', r'\1_dataloader.dataset.type'),
    (r'data\.(?:train|val|test)\.size_divisor', 'model.data_preprocessor.pad_size_divisor'),
    (r'data\.(train|val|test)\.img_prefix', r'\1_dataloader.dataset IMAGES'),
    (r'data\.(train|val|test)\.img_scale', r'\1_dataloader.dataset.pipeline Resize.scale'),
    (r'data\.(train|val|test)\.flip_ratio', r'\1_dataloader.dataset.pipeline RandomFlip.prob'),
    (r'data\.train\.with_mask', 'train_dataloader.dataset.pipeline LoadAnnotations.with_mask'),
    (r'data\.(train|val|test)\.proposal_file', r'\1_dataloader.dataset.pipeline LoadProposals.proposal_file'),
    (r'data\.(val|test)\.test_mode', r'\1_dataloader.dataset.test_mode'),
    (r'model\.pretrained', 'model.backbone.init_cfg.checkpoint'),
    (r'model\.backbone\.dcn\.modulated', 'model.backbone.dcn.type'),
    (r'model\.backbone\.dcn\.deformable_groups', 'model.backbone.dcn.deform_groups'),
    (r'model\.backbone\.dcn\.groups', 'model.backbone.groups'),
    (r'model\.backbone\.input_size', 'model.bbox_head.anchor_generator.input_size'),
    (r'model\.backbone\.l2_norm_scale', 'model.neck.l2_norm_scale'),
    (r'model\.bbox_head\.(input_size|basesize_ratio_range)', r'model.bbox_head.anchor_generator.\1'),
    (r'model\.num_stages', 'model.roi_head.num_stages'),
    (r'train_cfg\.stage_loss_weights', 'model.roi_head.stage_loss_weights'),
    (r'model\.(backbone|neck|(?:bbox|mask)_head)\.normalize\.(.*)', r'model.\1.norm_cfg.\2'),
    (r'normalize\.(.*)', r'model.neck.norm_cfg.\1'),
    (r'model\.rpn_head\.use_sigmoid_cls', 'model.rpn_head.loss_cls.use_sigmoid'),
    (r'model\.(.*)\.anchor_(ratios|scales|strides)', r'model.\1.anchor_generator.\2'),
    (r'model\.(.*)\.(octave_base_scale|scales_per_octave)', r'model.\1.anchor_generator.\2'),
    (r'model\.(.*)\.target_(means|stds)', r'model.\1.bbox_coder.target_\2'),
    (r'(.*)\.roi_layer\.out_size', r'\1.roi_layer.output_size'),
    (r'(.*)\.roi_layer\.sample_num', r'\1.roi_layer.sampling_ratio'),
    (r'(.*)\.roi_layer\.trans_std', r'\1.roi_layer.gamma'),
    (r'(.*)\.roi_layer\.out_channels', r'\1.roi_layer.output_channels'),
    (r'optimizer\.(.*)', r'optim_wrapper.optimizer.\1'),
    (r'optimizer_config\.grad_clip\.(.*)', r'optim_wrapper.clip_grad.\1'),
    (r'lr_config\.policy', 'param_scheduler.1.type'),
    (r'lr_config\.step', 'param_scheduler.1.milestones'),
    (r'lr_config\.warmup', 'param_scheduler.0.type'),
    (r'lr_config\.warmup_iters', 'param_scheduler.0.end'),
    (r'lr_config\.warmup_ratio', 'param_scheduler.0.start_factor'),
    (r'total_epochs', 'train_cfg.max_epochs'),
    (r'test_cfg\.keep_all_stages', 'model.test_cfg.rcnn.keep_all_stages'),
    (r'test_cfg\.rpn\.(?:max_num|nms_post)', [f'model.{rpn}.max_per_img' for rpn in PROPOSALS]),
    (r'test_cfg\.rpn\.nms_thr', [f'model.{rpn}.nms.iou_threshold' for rpn in PROPOSALS]),
    (r'test_cfg\.rpn\.(.*)', [rf'model.{rpn}.\1' for rpn in PROPOSALS]),
    (r'test_cfg\.(.*)nms\.iou_thr', r'model.test_cfg.\1nms.iou_threshold'),
    (r'train_cfg\.rpn\.smoothl1_beta', 'model.rpn_head.loss_bbox.beta'),
    (r'train_cfg\.smoothl1_beta', 'model.bbox_head.loss_bbox.beta'),
    (r'train_cfg\.(alpha|gamma)', r'model.bbox_head.loss_cls.\1'),
    (r'((?:train|test)_cfg\..*)', r'model.\1'),
    (r'(model\..*)', r'\1'),
]  # fmt: skip

# What the release's values are called here.
MEANINGS = {
    r'model\.pretrained': lambda v: v.replace('modelzoo://', 'torchvision://'),
    r'.*\.num_classes': lambda v: v - 1,  # without the background
    r'.*\.size_divisor': lambda v: v or 1,
    r'data\.train\.dataset\.(ann_file|img_prefix)': lambda v: v if isinstance(v, list) else [v],
    r'.*\.img_prefix': lambda v: v.removeprefix('./'),
    r'.*\.proposal_file': lambda v: v.replace('.pkl', '.proposal.json'),
    r'.*dcn\.modulated': lambda v: 'DCNv2' if v else 'DCN',
    r'.*\.add_extra_convs': lambda v: 'on_input' if v else v,
    r'.*normalize\.frozen': lambda v: not v,
    r'lr_config\.policy': lambda v: dict(step='MultiStepLR')[v],
    r'lr_config\.warmup': lambda v: dict(linear='LinearLR')[v],
    r'.*roi_layer\.type': lambda v: v.replace('RoIPoolingPack', 'RoIPoolPack'),
    r'model\.bbox_head(\.\d)?\.type': lambda v: dict(
        SharedFCBBoxHead='Shared2FCBBoxHead', ConvFCBBoxHead='Shared4Conv1FCBBoxHead'
    ).get(v, v),
}

# The value of what is not written out: a constructor's default.
DEFAULTS = {
    r'.*RandomFlip\.prob': 0,
    r'.*LoadAnnotations\.with_mask': False,
    r'.*norm_cfg\.(requires_grad|frozen)': True,
    r'.*\.bbox_head\.conv_out_channels': 256,
    r'.*\.test_mode': False,
    r'.*\.nms_across_levels|.*keep_all_stages|.*\.debug': False,
    r'.*\.pos_weight': -1,
    r'.*\.sampler\.neg_pos_ub': -1,
}

# What has no value here.
NO_COUNTERPART = {
    r'data\.(train|train\.dataset|val|test)\.with_(label|crowd)': 'crowds count only where ignore_iof_thr says so',
    r'data\.(val|test)\.with_mask': 'the metric reads masks from the annotation file',
    r'model\.neck': "SSDNeck has what was the backbone's",
    r'model\.bbox_head(\.\d)?\.num_(fcs|shared_convs|shared_fcs)': "the class's name says it",
    r'.*roi_layer\.(group_size|no_trans)': 'always 1 and False: pooling is not position sensitive and always deforms',
}  # fmt: skip

# (recipe, place here): (the value here, why). These hold in configs/cbn alone, which follow mmdetection 3.
_CBN = 'as in mmdetection 3, like the siblings that it is compared with'
DIFFERENCES = {
    (r'cbn/.*', r'.*roi_layer\.sampling_ratio'): (0, _CBN),
    (r'cbn/.*', r'model\.rpn_head\.loss_bbox\.beta'): (ABSENT, _CBN + ': L1'),
    (r'cbn/.*', r'model\.train_cfg\.rpn\.allowed_border'): (-1, _CBN),
    (r'cbn/.*', r'model\.test_cfg\.rpn\.(nms_pre|max_per_img)'): (1000, _CBN),
    (r'cbn/.*', r'model\.train_cfg\.rpn_proposal\.max_per_img'): (1000, _CBN),
}  # fmt: skip


def path_of(recipe: str) -> Path:
    return CONFIGS / f'{recipe}.py'


def load(path: Path) -> dict:
    return Config.fromfile(path, lazy_import=False).to_dict()


@pytest.fixture(scope='module')
def release() -> dict:
    if not (RELEASE / 'release_recipes.json').exists():
        pytest.skip("the values of the method's release are not at hand")
    return json.loads((RELEASE / 'release_recipes.json').read_text())


def first(table: dict, key: str):
    return next((value for pattern, value in table.items() if re.fullmatch(pattern, key)), None)


def places_of(key: str, cfg: dict) -> list[str]:
    pattern, templates = next(pair for pair in RENAMES if re.fullmatch(pair[0], key))
    templates = [templates] if isinstance(templates, str) else templates
    places = [re.fullmatch(pattern, key).expand(template) for template in templates]
    if 'roi_head' in cfg['model']:  # heads and extractors moved there
        places = [re.sub(r'^model\.((bbox|mask)_(head|roi_extractor))', r'model.roi_head.\1', p) for p in places]
    if cfg['model'].get('bbox_head', {}).get('type') == 'SSDHead':
        places = [p.replace('bbox_head.loss_bbox.beta', 'train_cfg.smoothl1_beta') for p in places]
    return [p for p in places if 'rpn_proposal' not in p or 'roi_head' in cfg['model']]


def value_at(cfg: dict, place: str):
    if place.startswith('TRAINED'):  # of the data sets that a RepeatDataset has
        repeated = cfg['train_dataloader']['dataset']['dataset']
        values = [value_at(dict(it=dataset), place.replace('TRAINED', 'it')) for dataset in datasets_in(repeated)]
        if place.split()[-1].isupper():
            return values
        assert values == values[:1] * len(values)
        return values[0]
    if place.endswith(' IMAGES'):
        dataset = value_at(cfg, place.removesuffix(' IMAGES'))
        prefix = dataset['data_prefix']
        return dataset['data_root'] + prefix.get('img', prefix.get('sub_data_root'))
    if place.endswith(' ANNOTATIONS'):
        dataset = value_at(cfg, place.removesuffix(' ANNOTATIONS'))
        return dataset['data_root'] + dataset['ann_file']
    dotted, _, in_pipeline = place.partition(' ')
    node = cfg
    for part in dotted.split('.'):
        if isinstance(node, (list, tuple)):
            node = node[int(part)]
        elif isinstance(node, dict) and part in node:
            node = node[part]
        else:
            return ABSENT if (default := first(DEFAULTS, place)) is None else default
    if not in_pipeline:
        return node
    kind, option = in_pipeline.split('.')
    step = next((step for step in node if step['type'] == kind), {})
    return step.get(option, first(DEFAULTS, place))


def datasets_in(dataset: dict) -> list[dict]:
    """Those with a pipeline, below a RepeatDataset and a ConcatDataset."""
    inner = dataset.get('datasets') or ([dataset['dataset']] if 'dataset' in dataset else [])
    return [found for part in inner for found in datasets_in(part)] if inner else [dataset]


def plain(value):
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def test_every_recipe_of_the_release_is_here(release):
    for name in release['recipes']:
        assert path_of(name).exists() or any(part in name for part in ELSEWHERE), name


def test_values_are_the_releases_or_listed(release):
    """Every value of every recipe; and every entry of the tables is needed."""
    wrong, used = [], set()
    for recipe, values in release['recipes'].items():
        if any(part in recipe for part in ELSEWHERE):
            continue
        cfg = load(path_of(recipe))
        for key, value in {**release['common'], **values}.items():
            if (reason := first(NO_COUNTERPART, key)) is not None:
                used.add(reason)
                continue
            expected = (first(MEANINGS, key) or (lambda v: v))(value)
            for place in places_of(key, cfg):
                found = value_at(cfg, place)
                listed = next(
                    (d for d in DIFFERENCES if re.fullmatch(d[0], recipe) and re.fullmatch(d[1], place)), None
                )
                if listed is not None:
                    expected_here = DIFFERENCES[listed][0]
                    used.add(listed)
                else:
                    expected_here = expected
                same = found is expected_here or plain(found) == plain(expected_here)
                if not same and isinstance(expected_here, float):
                    same = found == pytest.approx(expected_here)
                if not same:
                    wrong.append(f'{recipe}: {key}={value!r}, here {place}={found!r}')
    assert not wrong, '\n'.join(wrong[:40])
    assert used == {*DIFFERENCES, *NO_COUNTERPART.values()}


@pytest.mark.parametrize(
    'path', [path for path in RECIPES if path.parent.name != 'cbn'], ids=lambda path: f'{path.parent.name}/{path.stem}'
)
def test_losses_follow_the_release(path):
    """They are no option of the release: SmoothL1 with beta 1 on RoIs, and every match of low quality counts."""
    model = load(path)['model']
    heads = model.get('roi_head', {}).get('bbox_head', [])
    for head in heads if isinstance(heads, (list, tuple)) else [heads]:
        assert head['loss_bbox']['type'] == 'SmoothL1Loss' and head['loss_bbox'].get('beta', 1.0) == 1.0
    rcnn = (model['train_cfg'] or {}).get('rcnn', [])
    for stage in rcnn if isinstance(rcnn, (list, tuple)) else [rcnn]:
        assert stage['assigner'].get('match_low_quality', True)


LARGE = [pytest.param(p, marks=pytest.mark.slow) if '101' in p.name else p for p in RECIPES]


@pytest.mark.parametrize('path', LARGE, ids=lambda path: f'{path.parent.name}/{path.stem}')
def test_builds_at_full_size(path):
    cfg = load(path).get('model')
    cfg['backbone']['init_cfg'] = None
    with torch.device('meta'):
        model = MODELS.build(cfg)
    if 'ssd' in path.name:
        assert len(model.bbox_head.cls_convs) == (6 if '300' in path.name else 7)
        return
    deformed = sum(name.endswith('conv2.conv_offset.weight') for name, _ in model.named_parameters())
    blocks = {50: 4 + 6 + 3, 101: 4 + 23 + 3}[cfg['backbone']['depth']]
    assert deformed == (blocks if 'dconv' in path.name else 0)


# ------------------------------------------------------------------ on photographs


def write_proposals(coco: Path, split: str, path: Path) -> None:
    """The ground truth of every image, as an RPN would write it."""
    content = json.loads((coco / 'annotations' / f'instances_{split}.json').read_text())
    found = [dict(image_id=a['image_id'], bbox=a['bbox'], score=1.0, category_id=1) for a in content['annotations']]
    path.write_text(json.dumps(found))


CARDS = ('ace', 'jack', 'king', 'nine', 'queen', 'ten')


def tiny(path: Path, data: Path, folder: Path):
    """A recipe on two images, of 128 pixels where its sizes are free, for one epoch of two iterations and a test."""
    voc, coco = 'voc' in path.name, data / 'coco_dev'
    options = {
        'data_root': f'{data / "cards_voc" if voc else coco}/', 'model.backbone.init_cfg': None,
        'train_cfg.max_epochs': 1, 'work_dir': str(folder), 'train_dataloader.batch_size': 1,
        'default_hooks.checkpoint.save_best': None,
    }  # fmt: skip
    if voc:
        options['model.bbox_head.num_classes'] = len(CARDS)
    cfg = load_config(str(path), options)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
        if loader.dataset.type == 'RepeatDataset':
            loader.dataset.times = 1
            if voc:
                del loader.dataset.dataset.datasets[1:]
        for dataset in datasets_in(loader.dataset):
            dataset.update(indices=2, **(dict(metainfo=dict(classes=CARDS)) if voc else {}))
            dataset.pipeline = [step for step in dataset.pipeline if TRANSFORMS.get(step['type'])]
        for step in [step for dataset in datasets_in(loader.dataset) for step in dataset.pipeline]:
            if step['type'] == 'Resize' and 'ssd' not in path.name:
                step.scale = (128, 96)
            if step['type'] == 'LoadProposals':
                split = 'train2017' if 'train' in step.proposal_file else 'val2017'
                step.proposal_file = str(folder / f'{split}.json')
                write_proposals(coco, split, Path(step.proposal_file))
    return cfg


@pytest.mark.slow
@pytest.mark.parametrize('path', RECIPES, ids=lambda path: f'{path.parent.name}/{path.stem}')
def test_trains_two_iterations_and_tests(path, real_data, tmp_path, on_the_cpu):
    cfg = tiny(path, real_data, tmp_path)
    set_seed(cfg, 0, False, None)
    runner = build_runner(cfg, 'none', None)
    learned = {name: p for name, p in runner.model.named_parameters() if p.requires_grad}
    before = {name: p.detach().flatten()[:256].clone() for name, p in learned.items()}
    runner.train()
    assert runner.iter == 2
    changed = [name for name, p in learned.items() if not p.flatten()[:256].equal(before[name])]
    assert len(changed) > len(before) / 2
    scalars = runner.message_hub.log_scalars
    assert any('coco/' in name or 'pascal_voc/' in name for name in scalars) and scalars['train/loss'].current() > 0
