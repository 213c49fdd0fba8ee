"""The Python that README and docs print runs as it stands, and the files they name are there.

docs/extend shows files of tests/extend, which tests of their own run. `python tests/test_documentation.py` copies the
files into the pages again after a change.
"""

import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import factories
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope

from mmdet import layers
from mmdet.config.check import check_values
from mmdet.config.load import check_types, load_config
from mmdet.datasets.coco import COCO_CLASSES
from mmdet.datasets.pipeline import build_steps, loaded_boxes
from mmdet.engine.data_checks import evaluated_data
from mmdet.engine.freezing import freeze
from mmdet.engine.runner import _add_outputs
from mmdet.engine.tta import use_tta
from mmdet.evaluation.voc import area_under_curve
from mmdet.registry import DATASETS, EVALUATOR, METRICS, MODELS, VISBACKENDS
from projects.demo.shapes import write_shapes

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [*sorted(ROOT.glob('*.md')), *sorted(ROOT.glob('docs/**/*.md')), *sorted(ROOT.glob('projects/**/*.md'))]
GUIDES = sorted(ROOT.glob('docs/extend/*.md'))
# A word of each Python block, and where it stands; the tests below run them.
BLOCKS = {
    'plan_cbn(model)': 'README.md',
    'plan_cbn(net)': 'projects/cbn_wheel/README.md',
    "classes=('apple', 'pear')": 'README.md',
    "inference_detector(model, 'photo.jpg').pred": 'README.md',
    'DetInferencer(': 'docs/inference.md',
    "type='DetTTAModel'": 'docs/inference.md',
    'onnxruntime.InferenceSession': 'docs/inference.md',
    'norm.after(conv, x)': 'docs/cbn.md',
    "metric=['bbox', 'segm']": 'docs/data.md',
    "type='XMLDataset'": 'docs/data.md',
    "type='MultiDatasetsEvaluator'": 'docs/data.md',
    'WandbVisBackend': 'docs/training.md',
    "type='MultiImageMixDataset'": 'docs/data.md',
    'frozen_parts': 'docs/training.md',
    "type='EMAHook'": 'docs/training.md',
}
SMALL = [
    *factories.command_line(factories.RESNET18),
    'model.train_cfg.rpn_proposal.max_per_img=50', 'model.train_cfg.rcnn.sampler.num=16',
    'model.test_cfg.rpn.max_per_img=20', 'train_cfg.max_epochs=1', 'train_dataloader.batch_size=2',
    'train_dataloader.num_workers=0', 'val_dataloader.num_workers=0',
    'train_pipeline.2.scale=96,96', 'test_pipeline.1.scale=96,96',
]  # fmt: skip
BLOCK = re.compile(r'^```python\n(.*?)^```', re.DOTALL | re.MULTILINE)
# A file's path in a comment, and the block that shows it.
SHOWN = re.compile(r'^<!-- (\S+\.py) -->\n```python\n(.*?)^```', re.DOTALL | re.MULTILINE)


def with_files(text: str) -> str:
    """A page whose blocks show the files that the comments before them name."""
    return SHOWN.sub(lambda shown: f'<!-- {shown[1]} -->\n```python\n{(ROOT / shown[1]).read_text()}```', text)


def block(word: str) -> str:
    (found,) = (text for text in BLOCK.findall((ROOT / BLOCKS[word]).read_text()) if word in text)
    return found


def tool(name: str, *arguments, monkeypatch) -> None:
    monkeypatch.setattr(sys, 'argv', [name, *map(str, arguments)])
    runpy.run_path(str(ROOT / 'tools' / name), run_name='__main__')


def relabelled(shapes: Path, split: str, classes: tuple[str, ...]) -> str:
    """The annotations of a split of the generated set with other names of the classes."""
    content = json.loads((shapes / 'annotations' / f'instances_{split}.json').read_text())
    ids = [category['id'] for category in content['categories']]
    names = [*classes, 'triangle', 'star'][: max(len(classes), len(ids))]
    content['categories'] = [dict(id=i, name=name) for i, name in enumerate(names, start=1)]
    return json.dumps(content)


@pytest.fixture(scope='module')
def shapes(tmp_path_factory) -> Path:
    return write_shapes(tmp_path_factory.mktemp('data') / 'shapes', train=4, val=2, size=96)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_block_is_run():
    texts = [text for path in DOCUMENTS for text in BLOCK.findall(SHOWN.sub('', path.read_text()))]
    assert [sum(word in text for word in BLOCKS) for text in texts] == [1] * len(BLOCKS)


@pytest.mark.slow
def test_a_file_without_mmdet(here):
    for library in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(library)
    from mmdet.cli import export

    factories.write_detector(here)
    shutil.copy(sorted(Path('shapes/val').glob('*'))[0], 'photo.jpg')
    export.main(['config.py', 'weights.pth', '--out', 'detector.onnx'])
    written = {}
    exec(block('onnxruntime.InferenceSession'), written)
    assert written['boxes'].shape == (5, 4) and written['masks'][0].shape == (5, 28, 28)
    assert set(written['names']) <= {'circle', 'square', 'triangle', 'star'} and len(written['names']) == 5


def test_views_of_an_image():
    cfg, written = load_config(ROOT / 'configs/faster_rcnn/faster_rcnn_r50_fpn_1x.py'), {}
    exec(block("type='DetTTAModel'"), written)
    cfg.tta_model, cfg.tta_pipeline = written['tta_model'], written['tta_pipeline']
    use_tta(cfg)
    check_types(cfg)
    load, views = build_steps(cfg.test_dataloader.dataset.pipeline)
    assert len(views.transforms) == 3 * 2
    model = MODELS.build(dict(cfg.test_cfg.tta_model, module=factories.tiny_detector('faster_rcnn')))
    assert model.tta_cfg == dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)


@pytest.mark.parametrize('path', GUIDES, ids=lambda path: path.name)
def test_a_guide_shows_its_files_as_they_are(path):
    assert path.read_text() == with_files(path.read_text()), 'run python tests/test_documentation.py'


def test_every_extension_is_shown():
    shown = {name for path in GUIDES for name, _ in SHOWN.findall(path.read_text())}
    files = {f'tests/extend/{path.name}' for path in (ROOT / 'tests' / 'extend').glob('*.py')}
    assert {name for name in shown if name.startswith('tests/extend/')} == files - {'tests/extend/test_extend.py'}


def test_cbn_in_a_model_of_ones_own(capsys):
    names = {}
    exec(block('plan_cbn(model)'), names)
    assert capsys.readouterr().out == 'CBN: 20 of 20 BatchNorm2d layers follow a Conv2d\n'
    assert not any('CrossIter' in type(m).__name__ for m in names['model'].modules())  # reverted


def test_cbn_from_its_own_wheel(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'cross_iteration_bn', layers)  # the wheel holds the same files
    exec(block('plan_cbn(net)'), {})
    assert capsys.readouterr().out == 'CBN: 20 of 20 BatchNorm2d layers follow a Conv2d\n'


def test_the_layer_by_hand():
    conv, model = torch.nn.Conv2d(8, 256, 3, bias=False), torch.nn.Sequential(torch.nn.Conv2d(8, 8, 1, bias=False),
                                                                              torch.nn.BatchNorm2d(8))
    names = dict(conv=conv, x=torch.randn(2, 8, 9, 9), model=model)
    exec(block('norm.after(conv, x)'), names)
    assert names['y'].shape == (2, 256, 7, 7) and type(model[1]) is torch.nn.BatchNorm2d


def test_ones_own_data(shapes, here, monkeypatch, capsys):
    """Trained from the weights of a detector of COCO's 80 classes, then evaluated."""
    folder = here / 'data' / 'mine'
    folder.mkdir(parents=True)
    for split in ('train', 'val'):
        shutil.copytree(shapes / split, folder / 'images', dirs_exist_ok=True)
        (folder / f'{split}.json').write_text(relabelled(shapes, split, ('apple', 'pear')))
    Path('my_data.py').write_text(block("classes=('apple', 'pear')"))
    coco = load_config(ROOT / 'configs/cbn/mask_rcnn_r50_fpn_gn_1x.py', factories.RESNET18)
    torch.save(dict(state_dict=MODELS.build(coco.model).state_dict()), 'mask_rcnn_trained_on_coco.pth')
    tool('train.py', 'my_data.py', '--work-dir', 'run', '--cfg-options', *SMALL, monkeypatch=monkeypatch)
    printed = capsys.readouterr()
    assert 'mask_rcnn_trained_on_coco.pth: ' in printed.err + printed.out
    tool('test.py', 'my_data.py', 'run/epoch_1.pth', '--eval', 'bbox', 'segm', '--out', 'found.pkl',
         '--cfg-options', *SMALL, monkeypatch=monkeypatch)  # fmt: skip
    assert 'apple' in ''.join(capsys.readouterr()) and Path('found.pkl').exists()


def test_what_mmengine_brings(shapes, here, monkeypatch, capsys):
    data = here / 'coco'
    (data / 'annotations').mkdir(parents=True)
    for split in ('train', 'val'):
        shutil.copytree(shapes / split, data / f'{split}2017')
        (data / 'annotations' / f'instances_{split}2017.json').write_text(relabelled(shapes, split, COCO_CLASSES))
    Path('config.py').write_text(block("type='EMAHook'").replace('./configs', str(ROOT / 'configs')))
    options = [option.replace('train_pipeline', 'train_dataloader.dataset.dataset.pipeline') for option in SMALL]
    tool('train.py', 'config.py', '--work-dir', 'run', '--cfg-options', *options, f'data_root={data}/',
         'train_cfg.max_epochs=2', monkeypatch=monkeypatch)  # fmt: skip
    assert '(6 images, 80 classes)' in capsys.readouterr().out  # one of the four has no object; twice the others
    assert 'ema_state_dict' in torch.load('run/epoch_2.pth', weights_only=True) and not Path('run/epoch_1.pth').exists()


def test_the_metric(shapes, monkeypatch):
    names = {}
    exec(block("metric=['bbox', 'segm']"), names)
    truth = shapes / 'annotations' / 'instances_val.json'
    metric = METRICS.build(dict(names['val_evaluator'], ann_file=str(truth)))
    metric.dataset_meta = dict(classes=('circle', 'square', 'triangle', 'star'))
    empty = dict(bboxes=torch.zeros(0, 4), scores=torch.zeros(0), labels=torch.zeros(0), masks=[])
    metric.process({}, [dict(img_id=1, pred_instances=empty)])
    assert metric.evaluate(1)['coco/segm_mAP'] == 0
    assert Path('work_dirs/x/results.segm.json').exists()


def written(word: str, config: str) -> Config:
    """The config that a block shows, based on one of configs/."""
    Path('shown.py').write_text(block(word).replace('./configs', str(ROOT / 'configs')))
    cfg = load_config('shown.py')
    assert config in cfg.pretty_text
    check_types(cfg)
    check_values(cfg, training=True)
    return cfg


def test_pascal_voc(shapes):
    folders = [Path('data/cards', part) for part in ('Annotations', 'JPEGImages', 'ImageSets/Main')]
    for folder in folders:
        folder.mkdir(parents=True)
    box = '<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>40</xmax><ymax>50</ymax></bndbox>'
    (folders[0] / 'a.xml').write_text(f'<annotation><object><name>jack</name>{box}</object></annotation>')
    shutil.copy(shapes / 'val' / '000001.jpg', folders[1] / 'a.jpg')
    for name in ('trainval', 'test'):
        (folders[2] / f'{name}.txt').write_text('a\n')
    cfg = written("type='XMLDataset'", 'VOCMetric')
    assert cfg.model.roi_head.bbox_head.num_classes == 3
    train, test = (DATASETS.build(loader.dataset) for loader in (cfg.train_dataloader, cfg.test_dataloader))
    assert train[0]['data_samples'].gt_instances.labels.tolist() == [1]
    assert test[0]['data_samples'].gt_instances.bboxes.tolist() == [[1, 1, 40, 50]]
    assert METRICS.build(cfg.test_evaluator).average_precision is area_under_curve


def test_several_validation_sets(shapes):
    Path('data').mkdir()
    shutil.copytree(shapes / 'val', 'data/mine/images')
    for name in ('day', 'night'):
        shutil.copy(shapes / 'annotations' / 'instances_val.json', f'data/mine/{name}.json')
    cfg = written("type='MultiDatasetsEvaluator'", 'ConcatDataset')
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset, evaluator = DATASETS.build(cfg.val_dataloader.dataset), EVALUATOR.build(cfg.val_evaluator)
    evaluator.dataset_meta = dataset.metainfo
    for metric, part in evaluated_data(evaluator, dataset):
        metric.check_dataset(part)
    assert evaluator.dataset_prefixes == ['day', 'night'] and len(dataset) == 4


def test_where_the_numbers_go():
    pytest.importorskip('wandb', reason='wandb is an extra')
    cfg = written('WandbVisBackend', 'init_kwargs')
    parts = ConfigDict(visualizer=cfg.visualizer)
    _add_outputs(parts)
    there = {backend['type']: backend for backend in parts.visualizer.vis_backends}
    assert there['WandbVisBackend']['init_kwargs'] == dict(project='cells') and 'LocalVisBackend' in there
    VISBACKENDS.build(dict(there['WandbVisBackend'], save_dir='run'))


def test_images_that_are_mixed(shapes):
    Path('data').mkdir()
    shutil.copytree(shapes, 'data/shapes')
    cfg = written("type='MultiImageMixDataset'", 'CopyPaste')
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
    sample = dataset[0]['data_samples']
    assert len(dataset) == 4 and max(sample.img_shape) == 160
    assert len(sample.gt_instances.masks) == len(sample.gt_instances.labels)


def test_parts_that_learn_slowly_or_not_at_all():
    cfg = written('frozen_parts', 'ValLossHook')
    cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model)
    freeze(model, cfg.frozen_parts)
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    rates = {id(p): (group['lr'], group['weight_decay']) for group in groups for p in group['params']}
    rates = {name: rates.get(id(p)) for name, p in model.named_parameters() if p.requires_grad}
    assert not any(name.startswith(('backbone.layer2', 'neck.lateral_convs')) for name in rates)
    assert rates['backbone.layer3.0.conv1.weight'] == (pytest.approx(0.001), 0.0001)
    assert rates['neck.fpn_convs.0.conv.weight'] == (0.01, 0.0001) and rates['neck.fpn_convs.0.conv.bias'] == (0.01, 0)
    assert loaded_boxes(build_steps(cfg.val_dataloader.dataset.pipeline)) == 'input'


def test_use_from_python(shapes, here, monkeypatch):
    text = block("inference_detector(model, 'photo.jpg').pred")
    config, checkpoint = re.search(r"init_detector\(\s*'([^']+)',\s*'([^']+)'", text).groups()
    Path(checkpoint).parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.save(dict(state_dict=MODELS.build(load_config(ROOT / config).model).state_dict()), checkpoint)
    shutil.copy(shapes / 'val' / '000001.jpg', 'photo.jpg')
    names = {}
    exec(text.replace(config, str(ROOT / config)), names)
    found = names['found']
    assert found.bboxes.shape == (len(found), 4) and len(found.masks) == len(found.labels) == len(found.scores)


def test_detecting(here, monkeypatch):
    factories.write_detector(here)
    for old, new in {'config.py': 'my_config.py', 'weights.pth': 'my_weights.pth'}.items():
        Path(old).rename(new)
    shutil.copy(sorted(Path('shapes/val').glob('*'))[0], 'photo.jpg')
    names = {}
    exec(block('DetInferencer('), names)
    assert repr(names['result']).startswith('DetResult(photo.jpg, 96 x 96: ')
    assert Path('found.png').exists() and Path('out/vis/photo.jpg').exists() and Path('out/preds/photo.json').exists()
    assert len(names['rows']) == len(names['best'].pred_instances)


@pytest.mark.parametrize('path', DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_named_files_are_there(path):
    text = path.read_text()
    links = [link.split('#')[0] for link in re.findall(r'\]\(([^)\s]+)\)', text) if '://' not in link]
    folder = '(?:configs|tools|docs|benchmarks|projects|tests)'
    named = re.findall(rf'(?<![\w/.-])(?:\./)?({folder}/[\w./-]*\w\.(?:py|sh|md|jpg|png))', text)
    missing = [link for link in links if link and not (path.parent / link).exists()]
    missing += [name for name in named if not (ROOT / name).exists()]
    assert missing == []


def test_promises_name_their_tests():
    named = re.findall(r'`(\w+/test_\w+\.py)(?:::(test_\w+))?`', (ROOT / 'docs' / 'reliability.md').read_text())
    assert len(named) > 30
    missing = [place for place in named if f'def {place[1]}' not in (ROOT / 'tests' / place[0]).read_text()]
    assert missing == []


if __name__ == '__main__':
    for guide in GUIDES:
        guide.write_text(with_files(guide.read_text()))
