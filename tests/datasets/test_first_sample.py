"""A transform, a data set or a model of a user's that passes on something else: one line at the first sample."""

import pickle

import mmcv
import numpy as np
import pytest
import torch
from mmcv.transforms import BaseTransform

from mmdet.config.errors import UserError
from mmdet.datasets import BaseDetDataset
from mmdet.datasets.pipeline import build_steps

INSTANCE = dict(bbox=[1, 2, 30, 20], bbox_label=0, ignore_flag=0)


class HorizontalBoxes:
    def __init__(self, boxes):
        self.tensor = torch.as_tensor(boxes)


class Sets(BaseTransform):
    def __init__(self, change):
        self.change = change

    def transform(self, results):
        self.change(results)
        return results


def wrap(results):
    results['gt_bboxes'] = HorizontalBoxes(results['gt_bboxes'])


def to_torch(results):
    results['gt_bboxes'] = torch.from_numpy(results['gt_bboxes'])


def flat(results):
    results['gt_bboxes'] = results['gt_bboxes'].flatten()


def float_labels(results):
    results['gt_bboxes_labels'] = results['gt_bboxes_labels'].astype(float)


def array_of_masks(results):
    results['gt_masks'] = np.zeros((1, 40, 60), bool)


class Listed(BaseDetDataset):
    METAINFO = dict(classes=('a',))
    image = dict(img_path='image.png', img_id=0, height=40, width=60, instances=[INSTANCE])

    def load_data_list(self):
        return [dict(self.image)]


@pytest.fixture
def first(tmp_path, monkeypatch):
    """Function `first(*steps, **image)`: the first sample of a data set with these steps amid ours."""
    monkeypatch.chdir(tmp_path)
    mmcv.imwrite(np.zeros((40, 60, 3), np.uint8), 'image.png')

    def sample(*steps, without=(), **image):
        image = {key: value for key, value in {**Listed.image, **image}.items() if key not in without}
        kind = type('Mine', (Listed,), dict(image=image))
        ours = [dict(type=name) for name in ('LoadImageFromFile', 'LoadAnnotations')]
        ends = [dict(type='RandomFlip', prob=1.0), dict(type='PackDetInputs')]
        return kind(pipeline=[*ours, *steps, *ends])[0]

    return sample


@pytest.mark.parametrize('change, says', [
    (wrap, r"a numpy array of floats \(G, 4\) in 'gt_bboxes' \(it is a HorizontalBoxes\)"),
    (to_torch, r"a numpy array of floats \(G, 4\) in 'gt_bboxes' \(it is float32 Tensor \(1, 4\)\)"),
    (flat, r"in 'gt_bboxes' \(it is float32 ndarray \(4,\)\)"),
    (float_labels, r"a numpy array of integers \(G,\) in 'gt_bboxes_labels' \(it is float64 ndarray \(1,\)\)"),
    (array_of_masks, r"PolygonMasks of mmdet.structures in 'gt_masks' \(it is bool ndarray \(1, 40, 60\)\)"),
])  # fmt: skip
def test_a_transform_that_sets_something_else_is_named(first, change, says):
    first(Sets(dict.copy))
    with pytest.raises(UserError, match=f'Sets.transform gave a dict .*{says} is expected') as error:
        first(Sets(change))
    assert '\n' not in str(error.value)


def test_so_is_one_inside_another_and_one_behind_a_function(first):
    with pytest.raises(UserError, match='Sets.transform gave'):
        first(dict(type='RandomApply', transforms=[dict(type=Sets, change=wrap)], prob=1.0))
    with pytest.raises(UserError, match=r"RandomFlip.transform needs a numpy array .*'gt_bboxes'; it is given a Horiz"):
        first(lambda results: wrap(results) or results)


def test_nothing_of_it_is_left_and_workers_look_for_themselves(first):
    steps = build_steps([Sets(wrap), Sets(dict.copy)])
    copies = pickle.loads(pickle.dumps(steps))  # as a worker that was not forked gets them
    for step in (steps[1], copies[1]):
        step({})
        assert 'transform' not in vars(step)
    with pytest.raises(UserError, match='Sets.transform gave'):
        copies[0](dict(gt_bboxes=np.zeros((1, 4), np.float32)))


@pytest.mark.parametrize('image, says', [
    (dict(without=['img_path']), 'an image of the data set has no img_path; it has .*img_id'),
    (dict(instances=[dict(bbox=[0, 0, 1, 1], ignore_flag=0)]), 'image.png has no bbox_label; the data set gives dicts'),
    (dict(instances=[dict(box=[0, 0, 1, 1], bbox_label=0, ignore_flag=0)]), 'image.png has no bbox; the data set'),
    (dict(instances=[dict(bbox=[0, 0, 1, 1], bbox_label=0)]), 'image.png has no ignore_flag; the data set gives dicts'),
])  # fmt: skip
def test_an_image_that_lacks_a_key(first, image, says):
    with pytest.raises(UserError, match=says) as error:
        first(**image)
    assert '\n' not in str(error.value)


class Fails(BaseTransform):
    def transform(self, results):
        return results['gt_semantic_seg']


def test_an_error_inside_a_transform_stays_that_error(first):
    with pytest.raises(KeyError, match='gt_semantic_seg') as error:
        first(Fails())
    assert error.value.__notes__[0].startswith('in the first call of Fails.transform, which is given a dict (')
