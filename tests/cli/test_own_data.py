"""From a folder that another tool wrote to a trained detector: convert, init, check, train, test."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from mmdet.cli.command import call
from mmdet.cli.init import Plan
from mmdet.config.errors import UserError
from mmdet.config.load import check_types, load_config
from mmdet.registry import MODELS
from mmdet.structures.coco_file import load_coco_file

SMALL = ['model.train_cfg.rcnn.sampler.num=16', 'model.train_cfg.rpn_proposal.max_per_img=50',
         'model.test_cfg.rpn.max_per_img=20', 'data.num_workers=0', 'val_dataloader.num_workers=0',
         'test_dataloader.num_workers=0', 'data.scale=96,72', 'train_cfg.max_epochs=1']  # fmt: skip


@pytest.fixture
def cards(tmp_path, real_data, monkeypatch) -> Path:
    """Sixteen images of a set that labelImg annotated, in the working folder."""
    monkeypatch.chdir(tmp_path)
    source = real_data / 'cards_voc' / 'VOC2007'
    for name in sorted((source / 'Annotations').iterdir())[::14][:16]:
        for folder, suffix in (('Annotations', '.xml'), ('JPEGImages', '.jpg')):
            (tmp_path / 'cards' / folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(source / folder / f'{name.stem}{suffix}', tmp_path / 'cards' / folder)
    return Path('cards')


def test_convert_writes_what_training_reads(cards, capsys):
    call(['convert', 'cards', '--val', '0.25', '--seed', '3'])
    printed = capsys.readouterr().out
    assert 'cards: voc; 25% for validation' in printed and 'Next: mmdet init data/cards' in printed
    parts = [load_coco_file(f'data/cards/{name}.json') for name in ('train', 'val')]
    assert sum(len(part['images']) for part in parts) == 16 and len(parts[1]['images']) in (3, 4, 5)
    assert parts[0]['categories'] == parts[1]['categories']
    for part in parts:
        assert all(Path('data/cards', image['file_name']).is_file() for image in part['images'])
        assert len({x['id'] for x in part['annotations']}) == len(part['annotations'])
        assert all(x['area'] == x['bbox'][2] * x['bbox'][3] for x in part['annotations'])
    with pytest.raises(UserError, match='data/cards/train.json, data/cards/val.json would be overwritten'):
        call(['convert', 'cards'])
    call(['convert', 'cards', '--val', '0.25', '--seed', '3', '--out', 'again'])  # as deep: the same relative names
    shutil.move('again', 'data/again')
    names = [Path(image['file_name']).name for image in json.loads(Path('data/again/val.json').read_text())['images']]
    assert names == [Path(image['file_name']).name for image in parts[1]['images']]


@pytest.mark.parametrize(
    'words, message',
    [
        (['nowhere'], 'nowhere: no such folder'),
        (['cards/JPEGImages'], 'no annotations of coco, cvat, labelme, voc, yolo found'),
        (['cards', '--val', '20'], '--val 20.0: a fraction'),
        (['cards', '--format', 'yolo'], 'classes.txt'),
    ],
)
def test_mistakes_of_convert(cards, words, message):
    with pytest.raises(UserError, match=message):
        call(['convert', *words])


def test_two_formats_in_one_folder(cards):
    (cards / 'x.json').write_text('{"images": [], "annotations": [], "categories": []}')
    with pytest.raises(UserError, match='has annotations of coco and voc; choose with --format'):
        call(['convert', 'cards'])


@pytest.mark.parametrize(
    'model, norm',
    [('faster_rcnn_r18', 'cbn'), ('mask_rcnn_r50', 'gn'), ('retinanet_r50', 'syncbn'), ('cascade_rcnn_r34', 'none'),
     ('cascade_mask_rcnn_r101', 'bn')],
)  # fmt: skip
def test_init_writes_a_config_that_builds(model, norm, real_data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    call(['init', str(real_data / 'fruits_nuts'), '--model', model, '--norm', norm, '--from-scratch', '--out', 'x.py'])
    text = Path('x.py').read_text()
    assert max(map(len, text.splitlines())) <= 120 and text in capsys.readouterr().out
    cfg = load_config('x.py')
    check_types(cfg)
    with torch.device('meta'):
        built = MODELS.build(cfg.model)
    kinds = {type(module).__name__ for module in built.neck.modules()}
    norms = dict(cbn='CrossIterBatchNorm2d', gn='GroupNorm', bn='BatchNorm2d', syncbn='SyncBN', none=None)
    assert kinds & set(norms.values()) == ({norms[norm]} - {None})
    assert cfg.train_dataloader.dataset.data_prefix.img == 'train/images'
    assert tuple(cfg.train_dataloader.dataset.metainfo.classes) == ('date', 'fig', 'hazelnut')


def test_init_without_masks(cards):
    call(['convert', 'cards'])
    with pytest.raises(UserError, match='no object of data/cards/train.json has a mask; take faster_rcnn_r50'):
        call(['init', 'data/cards', '--model', 'mask_rcnn_r50'])
    with pytest.raises(UserError, match='Did you mean faster_rcnn_r50?'):
        call(['init', 'data/cards', '--model', 'faster_rcn_r50'])
    with pytest.raises(UserError, match='cards has no train.json in COCO.s format; `mmdet convert cards`'):
        call(['init', 'cards'])
    call(['init', 'data/cards'])
    text = Path('cards.py').read_text()
    assert "_base_ = 'mmdet::cbn/faster_rcnn_r50_fpn_1x.py'" in text and "norm_cfg = dict(type='GN'" in text
    with pytest.raises(UserError, match='cards.py exists'):
        call(['init', 'data/cards'])


def test_names_of_classes_and_folders_stay_whole(tmp_path, real_data, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = json.loads((real_data / 'fruits_nuts' / 'train' / 'instances.json').read_text())
    names = [f"l'eau {'de ' * i}vie" for i in range(20)] + [f'a "{i}" b' for i in range(20)]
    content['categories'] = [dict(id=i, name=name) for i, name in enumerate(names, 1)]
    for i, annotation in enumerate(content['annotations']):
        annotation['category_id'] = 1 + i % 40
    Path('my-set 1.0').mkdir()
    for part in ('train', 'val'):
        Path('my-set 1.0', f'{part}.json').write_text(json.dumps(content))
    shutil.copytree(real_data / 'fruits_nuts' / 'train' / 'images', 'my-set 1.0/images')
    call(['init', 'my-set 1.0'])
    dataset = load_config('my_set_1_0.py').train_dataloader.dataset
    assert list(dataset.metainfo.classes) == names and dataset.data_root == 'my-set 1.0'
    assert dataset.data_prefix.img == 'images'


def made_up(images: int, side: int, extent: int) -> dict:
    return dict(images=[dict(id=i, width=2 * side, height=side) for i in range(images)],
                annotations=[dict(image_id=i, bbox=[0, 0, extent, extent]) for i in range(images)])  # fmt: skip


def test_the_plan_fits_data_and_machine():
    plan = Plan(made_up(4000, 1000, 100), gpus=[24.0] * 4, cores=32, from_scratch=False, masks=True)
    assert plan.scale == (1344, 672) and plan.batch == 5 and plan.total == 20 and plan.epochs == 12
    small = Plan(made_up(100, 300, 10), gpus=[24.0], cores=8, from_scratch=False, masks=True)
    assert small.scale == (1216, 608) and small.epochs == 100  # enlarged for small objects
    assert Plan(made_up(100, 300, 100), [24.0], 8, False, True).scale == (608, 288)  # which large ones do not need
    cpu = Plan(made_up(148, 500, 100), gpus=[], cores=2, from_scratch=True, masks=False)
    assert cpu.batch == 2 and cpu.workers == 1 and cpu.scale[0] <= 640 and cpu.epochs == 20
    assert Plan(made_up(1, 500, 100), [80.0], 8, False, False).batch == 1  # of one image


def test_check_of_a_config_and_of_a_folder(cards, capsys):
    call(['convert', 'cards'])
    call(['init', 'data/cards', '--model', 'faster_rcnn_r18', '--from-scratch'])
    call(['check', 'cards.py'])
    assert 'Sound.' in capsys.readouterr().out
    content = json.loads(Path('data/cards/train.json').read_text())
    content['annotations'][0]['bbox'][0] = -50
    content['images'][1]['height'] += 1
    Path('data/cards/train.json').write_text(json.dumps(content))
    with pytest.raises(SystemExit) as stopped:
        call(['check', 'data/cards', '--json', 'report.json', '--examples', '1'])
    assert stopped.value.code == 3
    printed = capsys.readouterr().out
    assert 'image of another size than annotated' in printed and 'box that reaches out of its image' in printed
    report = json.loads(Path('report.json').read_text())
    assert report['sound'] is False and report['sets']['train']['images'] == len(content['images'])
    assert {x['level'] for x in report['findings']['train']} >= {'refused', 'wrong'}
    (drawing,) = Path('check/train').rglob('box_that_reaches*/*.jpg')
    assert drawing.stat().st_size > 1000


@pytest.mark.slow
def test_from_a_folder_to_drawn_detections(cards, on_the_cpu, capsys):
    call(['convert', 'cards'])
    call(['init', 'data/cards', '--model', 'faster_rcnn_r18', '--from-scratch'])
    call(['train', 'cards.py', '--cfg-options', *SMALL])
    call(['test', 'cards.py', 'work_dirs/cards/epoch_1.pth', '--show-dir', 'found', '--cfg-options', *SMALL])
    assert 'bbox_mAP' in capsys.readouterr().out
    val = json.loads(Path('data/cards/val.json').read_text())
    assert len(list(Path('found').rglob('*.jpg'))) == len(val['images'])
