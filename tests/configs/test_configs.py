"""The configuration files."""

from pathlib import Path

import pytest
from mmengine.config import Config

CBN = Path(__file__).resolve().parents[2] / 'configs' / 'cbn'
VARIANTS = {
    '': None,
    '_syncbn': dict(type='SyncBN'),
    '_gn': dict(type='GN', num_groups=32),
    '_cbn_buffer3_burnin8': dict(type='CBN', buffer_num=3, burnin=8),
    '_cbn_full_gradient': dict(type='CBN', buffer_num=3, full_gradient=True),
    '_cbn_as_released': dict(type='BN'),
}


def load(path) -> dict:
    return Config.fromfile(path, lazy_import=False).to_dict()


def without_norm(cfg: dict) -> dict:
    cfg.pop('norm_cfg', None)
    for part in (cfg['model']['neck'], *(cfg['model']['roi_head'].get(h) for h in ('bbox_head', 'mask_head'))):
        if part is not None:
            part.pop('norm_cfg', None)
    return cfg


@pytest.mark.parametrize('kind', ['faster', 'mask'])
def test_siblings_differ_in_norm_alone(kind):
    resolved = {name: load(CBN / f'{kind}_rcnn_r50_fpn{name}_1x.py') for name in VARIANTS}
    for name, norm_cfg in VARIANTS.items():
        model = resolved[name]['model']
        heads = [model['neck'], model['roi_head']['bbox_head']]
        heads += [model['roi_head']['mask_head']] if kind == 'mask' else []
        assert [head.get('norm_cfg') for head in heads] == [norm_cfg] * len(heads)
    stripped = [without_norm(cfg) for cfg in resolved.values()]
    assert all(cfg == stripped[0] for cfg in stripped[1:])


def test_recipe_of_the_method():
    cfg = load(CBN / 'mask_rcnn_r50_fpn_cbn_buffer3_burnin8_1x.py')
    assert cfg['train_dataloader']['batch_size'] == 4 and cfg['train_cfg']['max_epochs'] == 12
    optimizer = cfg['optim_wrapper']['optimizer']
    assert (optimizer['type'], optimizer['lr']) == ('SGD', 0.02)
    assert (optimizer['momentum'], optimizer['weight_decay']) == (0.9, 1e-4)
    assert cfg['optim_wrapper']['clip_grad'] == dict(max_norm=35, norm_type=2)
    warmup, steps = cfg['param_scheduler']
    assert warmup['start_factor'] == pytest.approx(1 / 3) and warmup['end'] == 500
    assert steps['milestones'] == [8, 11]
    backbone = cfg['model']['backbone']
    assert backbone['frozen_stages'] == 1 and backbone['norm_eval'] and backbone['style'] == 'pytorch'
    assert backbone['init_cfg']['checkpoint'] == 'torchvision://resnet50'


FOLDERS = (
    'cbn', 'faster_rcnn', 'mask_rcnn', 'cascade_rcnn', 'fast_rcnn', 'retinanet', 'rpn', 'torchvision', 'detectron2',
    'gn', 'demo', 'pascal_voc',
)  # fmt: skip
RECIPES = sorted(path for folder in FOLDERS for path in CBN.parent.glob(f'{folder}/*_*.py'))


def innermost(dataset: dict) -> dict:
    inner = dataset.get('dataset') or dataset.get('datasets', [None])[0]
    return innermost(inner) if inner else dataset


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
def test_every_recipe_builds_its_model_and_agrees_with_itself(path):
    import torch

    from mmdet.checkpoints import num_classes_of
    from mmdet.registry import DATASETS, MODELS

    cfg = load(path)
    backbone = cfg['model']['backbone']
    backbone['init_cfg'] = None
    with torch.device('meta'):
        model = MODELS.build(cfg['model'])
    trained, evaluated = innermost(cfg['train_dataloader']['dataset']), cfg['val_dataloader']['dataset']
    default = DATASETS.get(trained['type']).METAINFO['classes']
    classes = trained.get('metainfo', {}).get('classes', default)
    assert num_classes_of(model) in (None, len(classes))  # None: the RPN alone
    assert cfg['val_evaluator'].get('ann_file', evaluated['ann_file']).endswith(evaluated['ann_file'])
    assert trained['ann_file'] != evaluated['ann_file']
    steps = [s for s in cfg['param_scheduler'] if s['type'] == 'MultiStepLR']
    assert all(s['milestones'][-1] < s['end'] == cfg['train_cfg']['max_epochs'] for s in steps)


@pytest.mark.parametrize('kind', ['faster_rcnn', 'retinanet'])
def test_recipe_of_pascal_voc(kind):
    """The release's Faster R-CNN on 07+12: 12 epochs as 3 x 4, 1000 x 600, no warm-up, the 11 points of 2007."""
    cfg = load(CBN.parent / 'pascal_voc' / f'{kind}_r50_fpn_1x_voc0712.py')
    repeated = cfg['train_dataloader']['dataset']
    assert (repeated['type'], repeated['times'], cfg['train_cfg']['max_epochs']) == ('RepeatDataset', 3, 4)
    for year, part in zip(('VOC2007', 'VOC2012'), repeated['dataset']['datasets'], strict=True):
        assert part['ann_file'] == f'{year}/ImageSets/Main/trainval.txt'
        assert part['data_prefix'] == dict(sub_data_root=f'{year}/')
    assert cfg['val_dataloader']['dataset']['ann_file'] == 'VOC2007/ImageSets/Main/test.txt'
    assert cfg['train_dataloader']['batch_size'] == 2 and cfg['val_evaluator']['eval_mode'] == '11points'
    assert [step['scale'] for step in cfg['train_pipeline'] if step['type'] == 'Resize'] == [(1000, 600)]
    assert cfg['optim_wrapper']['optimizer']['lr'] == 0.01 and cfg['optim_wrapper']['clip_grad']['max_norm'] == 35
    assert [step['milestones'] for step in cfg['param_scheduler']] == [[3]]
