"""Annotation files as arrays: equal however they are read, and the cache of large ones."""

import json
import multiprocessing
import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest

from mmdet.config.errors import UserError
from mmdet.structures import coco_arrays
from mmdet.structures.coco_arrays import CocoArrays, load_coco_arrays
from mmdet.structures.coco_file import load_coco_file

SQUARE, RLE = [[1, 2, 11, 2, 11.5, 9]], dict(size=[40, 60], counts=[0, 9, 2391])


def content(images: int = 40, seed: int = 0) -> dict:
    """Objects of every kind in random order, some of no image or category."""
    rng = random.Random(seed)
    segmentations = [SQUARE, RLE, None, [], [[1, 2, 3, 4]], [[1, 2], [1, 2, 3, 4, 5, 6]], [[]], [1, 2, 3, 4, 5, 6]]
    annotations = []
    for k in range(6 * images):
        annotation = dict(id=k, image_id=rng.randrange(2 * images), category_id=rng.choice([3, 90, 7, 8]),
                          bbox=[rng.randrange(50), rng.random() * 30, rng.random() * 40, 9], iscrowd=rng.randrange(2),
                          segmentation=rng.choice(segmentations))  # fmt: skip
        annotation |= rng.choice([{}, dict(area=rng.random()), dict(ignore=1, area=7), dict(area=None, score=[1])])
        annotations.append(annotation)
    return dict(
        info=dict(year='2025'),
        images=[dict(id=2 * i, file_name=f'bär/{i}.jpg', width=60, height=40 + i) for i in range(images)],
        categories=[dict(id=90, name='cat'), dict(id=3, name='dog'), dict(id=7, name='cow', supercategory='x')],
        annotations=annotations,
    )


def write(path: Path, new: dict) -> str:
    path.write_text(json.dumps(new))
    return str(path)


def expected_entries(path: str) -> list[dict]:
    """What json finds, image by image."""
    plain = load_coco_file(path)
    known = {category['id'] for category in plain['categories']}
    entries = []
    for image in plain['images']:
        found = [a for a in plain['annotations'] if a['image_id'] == image['id']]
        keys = ('image_id', 'bbox', 'area', 'segmentation')
        entries.append(dict(
            raw_img_info=image,
            raw_ann_info=[{k: a[k] for k in keys if a.get(k) not in (None, [])} | dict(
                category_id=a['category_id'] if a['category_id'] in known else None,
                iscrowd=a.get('iscrowd', 0), ignore=a.get('ignore', 0)) for a in found],
        ))  # fmt: skip
    return entries


def entries(arrays: CocoArrays) -> list[dict]:
    return [arrays.entry(i) for i in range(len(arrays))]


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A folder in which every file is cached."""
    monkeypatch.setattr(coco_arrays, 'CACHED_FROM', 0)
    monkeypatch.setenv('MMDET_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


@pytest.mark.parametrize('seed', range(5))
def test_every_way_of_reading_gives_the_same(tmp_path, monkeypatch, seed):
    path = write(tmp_path / 'a.json', content(seed=seed))
    expected = expected_entries(path)
    typed = load_coco_arrays(path)
    assert entries(typed) == expected
    assert coco_arrays._typed_columns(Path(path).read_bytes()) is not None
    monkeypatch.setattr(coco_arrays, 'msgspec', None)
    plain = load_coco_arrays(path)
    assert entries(plain) == expected and plain.doubts == typed.doubts and plain.categories == typed.categories
    for name in CocoArrays._ARRAYS[:11]:
        np.testing.assert_array_equal(getattr(plain, name), getattr(typed, name), err_msg=name)
    monkeypatch.setattr(coco_arrays, 'CACHED_FROM', 0)
    monkeypatch.setenv('MMDET_CACHE', str(tmp_path / 'cache'))
    for _ in range(2):
        assert entries(load_coco_arrays(path)) == expected


def test_kinds_of_masks(tmp_path):
    segmentations = [SQUARE, RLE, None, [], [[1, 2, 3, 4]], [[1, 2], [1, 2, 3, 4, 5, 6]], [[]], [1, 2, 3, 4, 5, 6],
                     [1, 2, 3, 4], [[1, 2, 3, 4, 5, 6, 7]], [[1.0] * 301], [[1, 2], [3, 4], [5, 6]]]  # fmt: skip
    new = content(1)
    new['annotations'] = [dict(image_id=0, category_id=3, bbox=[1, 1, 9, 9], segmentation=s) for s in segmentations]
    found = load_coco_arrays(write(tmp_path / 'a.json', new)).mask.tolist()
    assert found == [1, 2, 0, 0, 0, 1, 0, 1, 0, 0, 1, 0]


@pytest.mark.parametrize('change', [
    dict(annotations=[]),
    dict(images=[dict(id=1, file_name='a', width=1, height=1)]),
    dict(categories=[], annotations=[]),
])  # fmt: skip
def test_nothing_of_a_kind(tmp_path, cache, change):
    path = write(tmp_path / 'a.json', content() | change)
    for _ in range(2):
        assert entries(load_coco_arrays(path)) == expected_entries(path)


def test_ids_that_are_no_numbers(tmp_path, cache):
    new = content()
    for image in new['images']:
        image['id'] = f'x{image["id"]}'
    for annotation in new['annotations']:
        annotation['image_id'] = f'x{annotation["image_id"]}'
    path = write(tmp_path / 'a.json', new)
    for _ in range(2):
        arrays = load_coco_arrays(path)
        assert entries(arrays) == expected_entries(path) and arrays.entry(0)['raw_img_info']['id'] == 'x0'


def test_the_cache_follows_the_file(tmp_path, cache, monkeypatch):
    """A changed file is read anew, also where neither its size nor its time tells."""
    path = write(tmp_path / 'a.json', content())
    first = load_coco_arrays(path)
    reads = []
    monkeypatch.setattr(coco_arrays, '_columns', lambda *a, real=coco_arrays._columns: reads.append(1) or real(*a))
    time = os.stat(path).st_mtime_ns
    assert entries(load_coco_arrays(path)) == entries(first) and not reads
    Path(path).write_text(Path(path).read_text().replace('"cat"', '"cap"'))
    os.utime(path, ns=(time, time))
    assert load_coco_arrays(path).categories[0]['name'] == 'cap' and len(reads) == 1
    os.utime(path, ns=(time + 1, time + 1))
    load_coco_arrays(path)
    assert len(reads) == 2
    (other := tmp_path / 'other').mkdir()
    load_coco_arrays(write(other / 'a.json', content(seed=1)))
    assert len(list(cache.glob('*.annotations'))) == 2 and entries(load_coco_arrays(path)) and len(reads) == 3


def test_a_damaged_or_deleted_cache_is_made_anew(tmp_path, cache):
    path = write(tmp_path / 'a.json', content())
    expected = entries(load_coco_arrays(path))
    (place,) = cache.glob('*.annotations')
    whole = place.read_bytes()
    for damaged in (b'', whole[:10], whole[:40], whole[:200], whole[:-1], b'x' + whole, whole[:50] + b'x' + whole[51:]):
        place.write_bytes(damaged)
        assert entries(load_coco_arrays(path)) == expected
        assert place.read_bytes() == whole
    arrays = load_coco_arrays(path)
    place.with_name(place.stem + '.1234.tmp').write_bytes(b'left by a killed process')
    place.unlink()
    assert entries(arrays) == expected  # it is mapped
    assert entries(pickle.loads(pickle.dumps(arrays))) == expected  # a worker that is not forked makes it anew
    assert sorted(p.suffix for p in cache.iterdir()) == ['.annotations', '.lock']


def test_without_a_folder_to_write_in(tmp_path, cache, monkeypatch):
    said = []
    monkeypatch.setattr(coco_arrays, 'say', said.append)
    cache.write_text('a file')
    path = write(tmp_path / 'a.json', content())
    arrays = load_coco_arrays(path)
    assert entries(arrays) == expected_entries(path)
    assert len(said) == 1 and 'are not cached' in said[0] and 'set MMDET_CACHE to a folder' in said[0]
    assert entries(pickle.loads(pickle.dumps(arrays))) == entries(arrays)


def _read(path: str) -> int:
    coco_arrays.CACHED_FROM = 0
    return len(load_coco_arrays(path))


def test_processes_that_come_at_once_make_it_once(tmp_path, cache):
    path = write(tmp_path / 'a.json', content())
    with multiprocessing.get_context('fork').Pool(4) as pool:
        assert pool.map(_read, [path] * 8) == [40] * 8
    assert sorted(p.suffix for p in cache.iterdir()) == ['.annotations', '.lock']


def test_annotations_may_be_missing_unless_needed(tmp_path, cache):
    new = content()
    del new['annotations']
    path = write(tmp_path / 'a.json', new)
    for _ in range(2):
        assert not load_coco_arrays(path, need_annotations=False).has_annotations
        with pytest.raises(UserError, match='it lacks annotations'):
            load_coco_arrays(path)
