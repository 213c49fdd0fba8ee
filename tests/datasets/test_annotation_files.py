"""Annotation files as tools write them: they work, or are refused before training in one line, on the command line."""

import json
from pathlib import Path

import pytest
from small_set import content, write_set


def ap(out: str) -> float:
    return float(out.partition('coco/bbox_mAP: ')[2].split()[0])


def changed(key: str, **fields) -> dict:
    """The set with some fields of its entries replaced, each by what a function makes of the old value."""
    new = content()
    for entry in new[key]:
        for field, change in fields.items():
            entry[field] = change(entry.get(field))
    return new


def together(*sets: dict) -> dict:
    """Fields of several changed sets in one."""
    original, new = content(), content()
    for one in sets:
        for key in new:
            for mine, theirs, old in zip(new[key], one[key], original[key]):
                mine.update({field: value for field, value in theirs.items() if old.get(field, '') != value
                             or type(value) is not type(old.get(field))})  # fmt: skip
    return new


def texts(value) -> str:
    return str(value)


TEXT_CATEGORIES = together(changed('categories', id=texts), changed('annotations', category_id=texts))
TEXT_IMAGES = together(changed('images', id=lambda i: f'image {i}'), changed('annotations', image_id='image {}'.format))
ROBOFLOW = content()
ROBOFLOW['categories'].insert(0, dict(id=0, name='cat', supercategory='none'))
SUPERCATEGORY_LAST = content()
SUPERCATEGORY_LAST['categories'].append(dict(id=77, name='dog', supercategory='animals'))
FLAT_POLYGONS = changed('annotations', segmentation=lambda polygons: polygons[0])


@pytest.mark.parametrize('new', [
    pytest.param(TEXT_CATEGORIES, id='category ids are texts'),
    pytest.param(changed('annotations', category_id=texts), id='category ids are texts in annotations alone'),
    pytest.param(changed('categories', id=texts), id='category ids are texts in categories alone'),
    pytest.param(TEXT_IMAGES, id='image ids are texts'),
    pytest.param(changed('annotations', image_id=texts), id='image ids are texts in annotations alone'),
    pytest.param(changed('images', id=lambda i: str(i) if i == 2 else i), id='image ids of two kinds'),
    pytest.param(changed('images', id=lambda i: i + 10**30), id='an image id beyond 64 bits, without objects'),
    pytest.param(changed('images', width=float, height=float), id='float sizes'),
    pytest.param(changed('images', width=str), id='sizes as texts'),
    pytest.param(changed('annotations', ignore=lambda _: '0'), id='ignore is a text'),
    pytest.param(changed('annotations', iscrowd=lambda _: False, ignore=lambda _: None), id='flags are false or null'),
    pytest.param(changed('annotations', bbox=lambda box: [str(x) for x in box]), id='boxes as texts'),
    pytest.param(changed('annotations', area=lambda _: None), id='areas are null'),
    pytest.param(ROBOFLOW, id='a supercategory with the name of a class, as Roboflow writes it'),
    pytest.param(SUPERCATEGORY_LAST, id='such a category at the end'),
    pytest.param(FLAT_POLYGONS, id='flat polygons, as VIA writes them'),
])  # fmt: skip
def test_what_can_be_read_is_read(call, new):
    write_set(new)
    out, _ = call('train.py', 'config.py')
    beyond = new['images'][0]['id'] == 1 + 10**30  # no annotation is on such an image
    assert ap(out) == (-1 if beyond else 1), out
    assert ('an id that is not in images' in out) == beyond


def test_the_dropped_category_is_named(call):
    write_set(ROBOFLOW)
    out, _ = call('train.py', 'config.py')
    assert "of the categories called 'cat', ids 0, 1, only 1 has objects; the others are left out" in out


@pytest.mark.parametrize('new, message', [
    (changed('images', id=lambda i: i if i > 1 else None), 'in images, id must be a number or a text'),
    (changed('annotations', image_id=lambda i: i if i > 1 else None), 'in annotations, image_id must be a number or'),
    (changed('categories', id=lambda i: i if i > 1 else None), 'in categories, id must be a number or a text'),
    (changed('images', id=lambda i: '2' if i == 1 else i), 'has several images of id 2'),
    (changed('annotations', ignore=lambda _: 'no'), "has ignore='no', which is neither 0 nor 1"),
    (changed('annotations', bbox=lambda _: [1, 2, 3, 10**400]), 'not four numbers x, y, width, height'),
    (changed('annotations', area=lambda _: 10**400), 'which is not a number'),
    (changed('annotations', area=lambda _: float('nan')), 'has area=nan, which is not a number'),
    (changed('annotations', bbox=lambda _: [True, 2, 3, 4]), 'not four numbers x, y, width, height'),
    (changed('images', height=lambda _: float('inf')), 'not a positive number'),
    (changed('images', height=lambda _: 80.5), 'has height=80.5, which is not a whole number of pixels'),
    (changed('images', height=lambda _: 2**63), 'which is not a whole number of pixels up to 2147483647'),
    (changed('images', width=lambda _: 1e30), 'has width=1e+30, which is not a whole number of pixels'),
    (changed('annotations', iscrowd=lambda _: 2**70), 'which is neither 0 nor 1'),
    (changed('images', file_name='http://example.com/{}'.format), 'is a URL; fetch the images'),
    (changed('images', file_name=lambda _: 's3://bucket/1.png'), "file_name 's3://bucket/1.png' is a URL"),
    (changed('images', file_name=lambda _: 'a\0b.png'), 'not the name of a file'),
    (changed('images', file_name=lambda _: '\ud800.png'), 'not the name of a file'),
    (json.dumps(content()).replace('"area": 720', '"area": 1e999'), 'has area=inf, which is not a number'),
    ('[' * 100_000, 'is not JSON'),
    (json.dumps(content())[:-1] + ', "x": ' + '[' * 3000 + ']' * 3000 + '}', 'is not JSON'),
    ('{"images": ' + '9' * 5000 + '}', 'is not JSON'),
])  # fmt: skip
def test_what_cannot_be_read_is_refused_at_the_start(refused, new, message):
    write_set(content())
    Path('set/instances.json').write_text(new if isinstance(new, str) else json.dumps(new))
    assert message in refused('train.py', 'config.py')


def cvat() -> dict:
    crowds = content()
    for annotation in crowds['annotations']:
        annotation.update(iscrowd=1, segmentation=dict(size=[80, 96], counts=[800, 50, 80 * 96 - 850]))
    return crowds


def azure() -> dict:
    return changed('annotations', bbox=lambda box: [box[0] / 96, box[1] / 80, box[2] / 96, box[3] / 80])


@pytest.mark.parametrize('new, messages', [
    (cvat(), ['6 are ignored', '6 of 6 annotations have iscrowd 1, as CVAT writes for every mask: they are ignored in '
              'training; set iscrowd to 0 where it is one object']),
    (azure(), ['6 have a box under', 'all 6 boxes lie between 0 and 1: a bbox is in pixels; multiply it by the width']),
    (changed('annotations', bbox=lambda box: [*box[:2], 0.5, 9]), ['(of 6 annotations 6 have a box under one pixel)']),
    (changed('annotations', bbox=lambda box: [box[0] + 100, *box[1:]], category_id=lambda k: k if k == 1 else 9),
     ['(of 6 annotations 3 are of other categories, 3 have a box outside their image)']),
])  # fmt: skip
@pytest.mark.parametrize('filtered', [True, False])
def test_why_no_object_is_left(refused, call, new, messages, filtered):
    write_set(new)
    option = ['--cfg-options', f'train_dataloader.dataset.filter_cfg.filter_empty_gt={filtered}']
    out = refused('train.py', 'config.py', *option) if filtered else call('train.py', 'config.py', *option)[0]
    assert all(message in out for message in ['3 have no object'] * filtered + messages), out


def unit_masks() -> dict:
    new = content()
    for annotation in new['annotations']:
        annotation['segmentation'] = [[v / (80 if i % 2 else 96) for i, v in enumerate(polygon)]
                                      for polygon in annotation['segmentation']]
    return new


@pytest.mark.parametrize('new, message', [
    (unit_masks(), 'The masks lie between 0 and 1: multiply them by the width and height of the image'),
    (changed('annotations', segmentation=lambda polygons: [[3 * v + 200 for v in polygons[0]]]), 'of another size'),
    (changed('annotations', segmentation=lambda _: dict(size=[80, 96], counts=[80 * 96 - 5, 5])), 'of another size'),
    (azure(), 'all 6 boxes lie between 0 and 1'),
])  # fmt: skip
def test_masks_elsewhere_than_their_boxes(call, new, message):
    write_set(new)
    out, _ = call('train.py', 'config.py')
    assert message in out and ('of 6 objects looked at, 6 have a mask elsewhere' in out) is (new != azure()), out


def test_min_size_that_leaves_nothing(refused):
    write_set(content())
    message = refused('train.py', 'config.py', '--cfg-options', 'train_dataloader.dataset.filter_cfg.min_size=81')
    assert 'of 3, 3 have a side under min_size=81' in message and 'have no object' not in message


def test_absolute_names_need_no_image_folder(call, tmp_path):
    """The folder may be empty, or missing."""
    absolute = changed('images', file_name=lambda name: str(tmp_path / 'elsewhere' / name))
    write_set(absolute)
    assert not list(Path('set/images').iterdir())
    assert ap(call('train.py', 'config.py')[0]) == 1
    Path('set/images').rmdir()
    assert ap(call('train.py', 'config.py', '--work-dir', 'again')[0]) == 1


@pytest.mark.parametrize('none', [[[]], [[10, 10]], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, 6, 7]], [1, 2, 3, 4]])
def test_polygons_that_are_none(refused, call, none):
    """Objects without a polygon of three points are ignored where masks are trained, as those without any mask are."""
    write_set(changed('annotations', segmentation=lambda polygons: polygons if polygons[0][0] == 8 else none))
    assert '3 of 6 objects have no mask, or polygons of fewer than three points' in call('train.py', 'config.py')[0]
    write_set(changed('annotations', segmentation=lambda _: none))
    assert 'no object of set/instances.json has a segmentation of three points or more' in refused(
        'train.py', 'config.py', '--work-dir', 'all')


@pytest.mark.parametrize('none', ['null', '[]', '[ ]', '[\n          ]', '{ }', '""'])
def test_no_mask_however_it_is_written(call, none):
    """Writers put white space, or an empty text, where an object has no mask."""
    write_set(changed('annotations', segmentation=lambda polygons: polygons if polygons[0][0] == 8 else 'none'))
    path = Path('set/instances.json')
    path.write_text(path.read_text().replace('"none"', none))
    out, _ = call('train.py', 'config.py')
    assert '3 of 6 objects have no mask, or polygons of fewer than three points' in out and ap(out) == 1


@pytest.mark.parametrize('number', ['NaN', '-Infinity', '1e400', '1' + '0' * 400])
def test_polygons_beyond_any_image_in_training_alone(refused, number):
    write_set(content())
    text = Path('set/instances.json').read_text()
    Path('set/train.json').write_text(text.replace('[[8, 8,', f'[[8, {number},'))
    error = refused('train.py', 'config.py', '--cfg-options', 'train_dataloader.dataset.ann_file=train.json')
    assert 'a segmentation is a list of polygons' in error
