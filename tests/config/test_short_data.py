"""``data = dict(root=..., train=..., val=...)`` becomes what one would have written out."""

import json

import pytest

from mmdet.config.errors import UserError
from mmdet.config.load import load_config

CLASSES = ('apple', 'pear')
LONG = """
_base_ = 'mmdet::cbn/mask_rcnn_r50_fpn_1x.py'
data_root = 'data/mine/'
metainfo = dict(classes=('apple', 'pear'))
train_dataloader = dict(batch_size=3, num_workers=0, persistent_workers=False, dataset=dict(
    data_root='data/mine', metainfo=metainfo, ann_file='train.json', data_prefix=dict(img='images')))
val_dataloader = dict(dataset=dict(
    data_root='data/mine', metainfo=metainfo, ann_file='val.json', data_prefix=dict(img='images')))
test_dataloader = dict(dataset=dict(
    data_root='data/mine', metainfo=metainfo, ann_file='val.json', data_prefix=dict(img='images')))
val_evaluator = dict(ann_file='data/mine/val.json')
test_evaluator = dict(ann_file='data/mine/val.json')
model = dict(roi_head=dict(bbox_head=dict(num_classes=2), mask_head=dict(num_classes=2)))
"""
SHORT = """
_base_ = 'mmdet::cbn/mask_rcnn_r50_fpn_1x.py'
data = dict(root='data/mine', train='train.json', val='val.json', images='images', batch_size=3, num_workers=0)
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'data' / 'mine').mkdir(parents=True)
    categories = [dict(id=7 * i, name=name) for i, name in enumerate(CLASSES)]
    (tmp_path / 'data' / 'mine' / 'train.json').write_text(json.dumps(dict(categories=categories)))


def load(text: str, **options) -> dict:
    with open('config.py', 'w') as file:
        file.write(text)
    return load_config('config.py', options).to_dict()


def test_it_is_what_one_would_write_out():
    long, short = load(LONG), load(SHORT)
    del long['metainfo']
    assert short == long


def test_scale_reaches_every_resize():
    cfg = load(SHORT.replace('images=', 'scale=(320, 240), images='))
    for pipeline in (cfg['train_pipeline'], cfg['test_pipeline'], cfg['train_dataloader']['dataset']['pipeline'],
                     cfg['val_dataloader']['dataset']['pipeline'], cfg['test_dataloader']['dataset']['pipeline']):
        assert [step['scale'] for step in pipeline if step['type'] == 'Resize'] == [(320, 240)]


def test_images_of_the_test_set_are_those_of_validation_where_it_is_that():
    cfg = load(SHORT.replace("images='images'", "images=dict(train='a', val='b')"))
    parts = [cfg[f'{name}_dataloader']['dataset'] for name in ('train', 'val', 'test')]
    assert [part['data_prefix']['img'] for part in parts] == ['a', 'b', 'b']
    cfg = load(SHORT.replace("images='images'", "test='other.json', images=dict(train='a', val='b')"))
    assert cfg['test_dataloader']['dataset']['data_prefix']['img'] == ''  # another set: the root, as said


def test_folders_of_their_own_and_a_test_set():
    text = SHORT.replace("images='images'", "test='test.json', images=dict(train='a', val='b', test='c')")
    cfg = load(text)
    places = [cfg[f'{name}_dataloader']['dataset']['data_prefix']['img'] for name in ('train', 'val', 'test')]
    assert places == ['a', 'b', 'c'] and cfg['test_evaluator']['ann_file'] == 'data/mine/test.json'


def test_without_validation():
    cfg = load(SHORT.replace("'val.json'", 'None'))
    parts = [f'{name}_{part}' for name in ('val', 'test') for part in ('dataloader', 'cfg', 'evaluator')]
    assert [cfg[part] for part in parts] == [None] * 6


def test_options_of_the_command_line():
    cfg = load(SHORT, **{'data.val': 'other.json', 'data.classes': ['x', 'y', 'z'], 'train_dataloader.batch_size': 1})
    assert cfg['val_evaluator']['ann_file'] == 'data/mine/other.json' and cfg['train_dataloader']['batch_size'] == 1
    assert cfg['model']['roi_head']['mask_head']['num_classes'] == 3 and 'num_classes' not in cfg['model']['rpn_head']
    cfg = load(SHORT, data_root='elsewhere/')
    assert cfg['val_evaluator']['ann_file'] == 'elsewhere/val.json'


def test_a_recipe_without_data_takes_all_of_it_from_the_command_line():
    options = {'data.root': 'data/mine', 'data.train': 'train.json', 'data.val': 'val.json', 'data.images': 'images',
               'data.batch_size': 3, 'data.num_workers': 0}  # fmt: skip
    expected = load(SHORT)
    assert load(SHORT.splitlines()[1], **options) == expected
    options.pop('data.images')
    options |= {'data.images.train': 'images', 'data.images.val': 'images'}
    assert load(SHORT.splitlines()[1], **options) == expected


def test_heads_in_a_list_and_wrapped_data():
    text = """
_base_ = 'mmdet::cascade_rcnn/cascade_rcnn_r50_fpn_1x.py'
train_dataloader = dict(dataset=dict(_delete_=True, type='RepeatDataset', times=3, dataset=dict(
    type='CocoDataset', pipeline=[dict(type='PackDetInputs')])))
data = dict(root='data/mine', train='train.json', val='val.json')
"""
    cfg = load(text)
    assert [head['num_classes'] for head in cfg['model']['roi_head']['bbox_head']] == [2, 2, 2]
    assert cfg['train_dataloader']['dataset']['dataset']['ann_file'] == 'train.json'


@pytest.mark.parametrize(
    'change, message',
    [
        (('root=', 'rooot='), "data has an unknown key 'rooot'.*Did you mean root?"),
        (('train.json', 'x.json'), 'no annotation file data/mine/x.json'),
        (("images='images'", "classes='apple'"), "names are needed, .'apple',."),
        (("val='val.json'", 'val=3'), 'data.val=3: a path is needed'),
        (("train='train.json'", 'train=dict(ann_file=1)'), 'of mmdetection 2.x'),
    ],
)
def test_mistakes(change, message):
    with pytest.raises(UserError, match=message):
        load(SHORT.replace(*change))


def test_a_file_that_is_not_in_coco_format():
    with open('data/mine/train.json', 'w') as file:
        file.write('[]')
    with pytest.raises(UserError, match='no list of categories'):
        load(SHORT)
