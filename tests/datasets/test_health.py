"""Planted faults are found, each by its name, and sound data has none."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from mmdet.config.errors import UserError
from mmdet.datasets import CocoDataset
from mmdet.datasets.health import DataSet, check_sets

PIPELINE = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_mask=True), dict(type='PackDetInputs')]


@pytest.fixture
def fruits(tmp_path, real_data) -> dict:
    """A copy of a small set with masks: its folder, and its annotations, which `write` writes."""
    shutil.copytree(real_data / 'fruits_nuts' / 'train', tmp_path / 'train')
    return json.loads((tmp_path / 'train' / 'instances.json').read_text())


def data_set(folder: Path, content: dict, name: str = 'train', **options) -> DataSet:
    (folder / f'{name}.json').write_text(json.dumps(content))
    return DataSet(name, str(folder / f'{name}.json'), str(folder / 'train' / 'images'), **options)


def found(report) -> dict[str, int]:
    return {kind: len(findings) for _, level, kind, findings in report.kinds() if level != 'remark'}


def test_sound_data(tmp_path, fruits):
    report = check_sets([data_set(tmp_path, fruits)])
    assert report.sound and found(report) == {}
    facts = report.sets['train']
    assert (facts['images'], facts['objects'], sum(facts['classes'].values())) == (12, 108, 108)


def test_what_training_refuses(tmp_path, fruits):
    """An image that is not there, is cut off, is of another size; an invalid mask. Training refuses the same."""
    images = fruits['images']
    folder = tmp_path / 'train' / 'images'
    (folder / images[1]['file_name']).unlink()
    path = folder / images[2]['file_name']
    path.write_bytes(path.read_bytes()[:-2000])
    images[3]['width'] += 1
    first = next(x for x in fruits['annotations'] if x['image_id'] == images[4]['id'])
    first['segmentation'] = [['a', 'b']]
    dataset = data_set(tmp_path, fruits)
    report = check_sets([dataset])
    assert not report.sound and found(report) == {
        'image that is not there': 1, 'image that cannot be decoded': 1, 'image of another size than annotated': 1,
        'invalid mask': 1,
    }  # fmt: skip
    assert {finding.level for finding in report.findings['train'] if finding.image is None} <= {'refused', 'remark'}
    classes = tuple(category['name'] for category in fruits['categories'])
    trained = CocoDataset(dataset.ann_file, dict(classes=classes), data_prefix=dict(img=dataset.images),
                          pipeline=PIPELINE)
    refused = []
    for index in range(len(trained)):
        try:
            trained[index]
        except UserError:
            refused.append(index)
    assert refused == [1, 2, 3, 4]


def test_boxes_and_masks_that_cannot_be_right(tmp_path, fruits):
    images = {image['id']: image for image in fruits['images']}
    boxes = dict(zip(range(7), fruits['annotations']))
    size = images[boxes[0]['image_id']]
    boxes[0]['bbox'] = [0.1, 0.2, 0.3, 0.4]
    boxes[1]['bbox'] = [size['width'] * 0.6, size['height'] * 0.6, size['width'] * 0.8, size['height'] * 0.8]
    boxes[2]['bbox'] = [10, 10, -5, 20]
    boxes[3]['bbox'] = [size['width'] + 5, 10, 20, 20]
    boxes[4]['segmentation'] = [[1, 2, 3, 4]]
    boxes[5]['segmentation'] = [[0, 0, 5, 0, 5, 5]]
    boxes[6]['category_id'] = 99
    report = check_sets([data_set(tmp_path, fruits)])
    assert found(report) == {
        'box between 0 and 1: not in pixels': 1,
        'box that reaches out of its image, and would fit as two corners': 1,
        'box without extent': 1,
        'box outside its image': 1,
        'polygon of fewer than three points, or half a point': 1,
        # those whose box was moved, too
        'mask elsewhere than its box': 5,
        'annotation of a category that is not listed': 1,
    }


def test_one_image_in_training_and_validation(tmp_path, fruits):
    """Under another name, too; and twice in one set."""
    folder = tmp_path / 'train' / 'images'
    names = [image['file_name'] for image in fruits['images']]
    shutil.copy(folder / names[0], folder / 'again.jpg')
    shutil.copy(folder / names[1], folder / 'twice.jpg')
    val = dict(fruits, images=[dict(fruits['images'][0], file_name='again.jpg')], annotations=[])
    twice = dict(fruits, images=[*fruits['images'], dict(fruits['images'][1], id=99, file_name='twice.jpg')])
    report = check_sets([data_set(tmp_path, twice), data_set(tmp_path, val, 'val')])
    assert found(report) == {'image that is in train, too': 1} and not report.sound
    kinds = Counter(kind for _, _, kind, _ in report.kinds())
    assert kinds['image that is there twice'] == 1 and kinds['image without an object'] == 2  # one in each set


def test_what_a_person_judges(tmp_path, fruits):
    """Objects that are small at the scale of training, a class without objects, one annotated twice."""
    fruits['categories'].append(dict(id=50, name='pear'))
    fruits['annotations'].append(dict(fruits['annotations'][0], id=10**6))
    report = check_sets([data_set(tmp_path, fruits, scale=(40, 30))])
    assert report.sound
    kinds = {kind: findings for _, _, kind, findings in report.kinds()}
    assert [x.place for x in kinds['class without an object']] == ['pear']
    sides = [(x['bbox'][2] * x['bbox'][3]) ** 0.5 / 20 for x in fruits['annotations']]  # 800 x 600 becomes 40 x 30
    assert len(kinds['object under 8 pixels at the scale of training']) == sum(side < 8 for side in sides) > 9
    assert len(kinds['object annotated twice (same class, IoU above 0.95)']) == 2


def test_a_test_set_without_annotations(tmp_path, fruits):
    del fruits['annotations']
    assert check_sets([data_set(tmp_path, fruits, 'test')]).kinds() == []
    assert found(check_sets([data_set(tmp_path, fruits, 'val')])) == {'annotation file that cannot be used': 1}


def test_a_file_that_is_none(tmp_path, fruits):
    dataset = data_set(tmp_path, fruits)
    Path(dataset.ann_file).write_text('{"images": [')
    report = check_sets([dataset])
    assert found(report) == {'annotation file that cannot be used': 1}


def test_processes_find_the_same(tmp_path, fruits):
    fruits['images'] = [dict(image, id=100 * i + image['id']) for i in range(6) for image in fruits['images']]
    fruits['annotations'] = []
    dataset = data_set(tmp_path, fruits)
    one, two = (check_sets([dataset], processes) for processes in (1, 2))
    assert one.findings == two.findings and len(one.findings['train']) > 60
