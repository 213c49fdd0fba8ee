"""Mosaic and CopyPaste, and the data set around another that feeds them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from mmdet.config.check import check_values
from mmdet.config.errors import UserError
from mmdet.config.load import load_config
from mmdet.datasets import CopyPaste, LoadAnnotations, Mosaic, MultiImageMixDataset
from mmdet.engine.seeding import seeded_dataloader
from mmdet.structures import BitmapMasks, PolygonMasks
from projects.demo.shapes import write_shapes

LOADING = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask=True)]
MIXING = [
    dict(type='Mosaic', img_scale=(64, 48), prob=0.7),
    dict(type='RandomAffine', border=(-32, -24)),
    dict(type='CopyPaste'),
    dict(type='PackDetInputs'),
]


def scene(polygons, height, width, grey=255, bitmap=False, crowds=(), mask=True) -> dict:
    """What LoadAnnotations leaves of a black image with grey polygons, labelled from 0."""
    polygons = [np.asarray(p, float) for p in polygons]
    instances = [
        dict(bbox=[*p.min(0), *p.max(0)], bbox_label=i, ignore_flag=int(i in crowds), mask=[p.ravel().tolist()])
        for i, p in enumerate(polygons)
    ]
    results = dict(img_shape=(height, width), ori_shape=(height, width), instances=instances, scale_factor=(1.0, 1.0))
    results = LoadAnnotations(with_mask=True, poly2mask=bitmap)(results)
    painted = results['gt_masks'].to_ndarray().any(axis=0) * np.uint8(grey)
    if not mask:
        del results['gt_masks']
    return dict(results, img=np.repeat(painted[..., None], 3, axis=2))


def rectangle(x1, y1, x2, y2):
    return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]


sizes = st.tuples(st.integers(30, 90), st.integers(30, 90))


@given(sizes=st.lists(sizes, min_size=4, max_size=4), seed=st.integers(0, 9999), bitmaps=st.lists(
    st.booleans(), min_size=4, max_size=4), count=st.integers(0, 2))  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_mosaic_keeps_four_images_their_boxes_and_masks_in_step(sizes, seed, bitmaps, count):
    rng = np.random.default_rng(seed)
    tiles = []
    for (height, width), bitmap in zip(sizes, bitmaps):
        corners = rng.uniform(2, 14, (count, 2))
        polygons = [rectangle(x, y, x + 0.5 * width - 3, y + 0.4 * height + 2) for x, y in corners]
        tiles.append(scene(polygons, height, width, bitmap=bitmap))
    np.random.seed(seed)
    out = Mosaic(img_scale=(60, 50), pad_val=0)(dict(tiles[0], mix_results=tiles[1:]))
    masks = out['gt_masks']
    assert type(masks) is (BitmapMasks if any(bitmaps) else PolygonMasks) and 'mix_results' not in out
    assert out['img'].shape == (100, 120, 3) and out['img_shape'] == (100, 120) == (masks.height, masks.width)
    assert len(masks) == len(out['gt_bboxes']) == len(out['gt_bboxes_labels']) == len(out['gt_ignore_flags'])
    assert count or not len(masks)
    boxes = out['gt_bboxes']
    large = (boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=99) > (3 if any(bitmaps) else 0)  # else without a pixel
    np.testing.assert_allclose(masks.boxes()[large], boxes[large], atol=2 if any(bitmaps) else 0.01)
    white = out['img'][..., 0] > 127
    union = masks.to_ndarray().any(axis=0)
    differ = white != union  # at the rims alone: a resize may round an edge to a pixel
    inner = differ[:-2, :-2] & differ[1:-1, 1:-1] & differ[2:, 2:] & differ[2:, :-2] & differ[:-2, 2:]
    assert not inner.any()


def test_mosaic_puts_the_images_around_a_centre():
    for seed in range(200):
        tiles = [scene([rectangle(0, 0, 40, 30)], 30, 40, grey=g) for g in (50, 100, 150, 200)]
        np.random.seed(seed)
        out = Mosaic(img_scale=(40, 30))(dict(tiles[0], mix_results=tiles[1:]))
        grey = out['img'][..., 0]
        left, top = (grey == 50).any(axis=0).sum(), (grey == 50).any(axis=1).sum()
        ys, xs = np.nonzero(grey == 200)
        x, y = xs.min(), ys.min()
        np.random.seed(seed)
        assert (x, y) == tuple(int(np.random.uniform(0.5, 1.5) * side) for side in (40, 30))
        assert (left, top) == (min(x, 40), min(y, 30)) and set(np.unique(grey)) <= {50, 100, 114, 150, 200}
        assert (grey[:y, :x][grey[:y, :x] != 114] == 50).all() and (grey[y:, :x][grey[y:, :x] != 114] == 150).all()
        seen = [(grey == g).any(axis=0).nonzero()[0] for g in (50, 100, 150, 200)]
        for box, columns in zip(out['gt_bboxes'], seen):
            assert (box[0], box[2]) == (columns[0], columns[-1] + 1)


def test_mosaic_fits_images_with_their_shape_and_may_leave_one_alone():
    tiles = [scene([], 100, 40) for _ in range(4)]
    out = Mosaic(img_scale=(60, 50), center_ratio_range=(1, 1))(dict(tiles[0], mix_results=tiles[1:]))
    covered = np.nonzero((out['img'] != 114).any(axis=(0, 2)))[0]
    assert (covered[0], covered[-1]) == (40, 79)  # 20 pixels wide on either side of 60
    np.random.seed(0)
    wanted = [len(Mosaic(prob=0.3).get_indexes(range(9))) for _ in range(300)]
    assert set(wanted) == {0, 3} and 0.2 < np.mean(wanted) / 3 < 0.4
    alone = scene([], 10, 10)
    assert Mosaic()(dict(alone, mix_results=[]))['img'] is alone['img']
    assert {len(Mosaic().get_indexes(range(9))) for _ in range(100)} == {3}
    assert Mosaic()(dict(alone, mix_results=[scene([], 10, 10) for _ in range(3)]))['img_shape'] == (1280, 1280)


@pytest.mark.parametrize('side, scale, fitted', [(41, 50, 21), (101, 47, 47)])
def test_mosaic_rounds_sides_half_up(side, scale, fitted):
    """20.5 pixels become 21, 47.47 become 47."""
    for shape, img_scale in ((100, side), (60, scale)), ((side, 100), (scale, 60)):
        tiles = [scene([], *shape) for _ in range(4)]
        out = Mosaic(img_scale=img_scale, center_ratio_range=(1, 1))(dict(tiles[0], mix_results=tiles[1:]))
        covered = (out['img'][..., 0] != 114).nonzero()
        assert sorted(len(np.unique(places)) for places in covered) == sorted([2 * fitted, 2 * scale])


def test_mosaic_at_the_borders():
    """Of each image at least a pixel is left; a box may reach over its own image, and is cut at the new one."""
    def mosaic(**options):
        tiles = [scene([rectangle(0, 0, 40, 30)], 30, 40, grey=g) for g in (50, 100, 150, 200)]
        tiles[0]['gt_bboxes'][0] = -4, 0, 44, 30
        return Mosaic(img_scale=(40, 30), **options)(dict(tiles[0], mix_results=tiles[1:]))

    for ratio, corner in (0, (1, 1)), (2, (79, 59)):
        ys, xs = np.nonzero(mosaic(center_ratio_range=(ratio, ratio))['img'][..., 0] == 200)
        assert (xs.min(), ys.min()) == corner
    middle = dict(center_ratio_range=(1, 1))
    assert mosaic(**middle)['gt_bboxes'][0].tolist() == [0, 0, 44, 30]
    assert mosaic(**middle, bbox_clip_border=False)['gt_bboxes'][0].tolist() == [-4, 0, 44, 30]


@pytest.mark.parametrize('bitmap', [False, True])
def test_copy_paste_puts_objects_over_others(bitmap):
    below = [rectangle(10, 10, 50, 40), rectangle(60, 10, 80, 30), rectangle(5, 45, 25, 58), rectangle(0, 0, 90, 60)]
    target = scene(below, 60, 90, grey=100, bitmap=bitmap, crowds=[3])
    source = scene([rectangle(40, 0, 95, 70), rectangle(0, 0, 9, 9)], 70, 95, bitmap=bitmap, crowds=[1])
    out = CopyPaste(selected=False)(dict(target, mix_results=[source]))
    assert out['gt_bboxes_labels'].tolist() == [0, 2, 3, 0]  # the second is covered, the crowd not pasted
    assert out['gt_ignore_flags'].tolist() == [False, False, True, False]
    assert out['gt_bboxes'].tolist() == [[10, 10, 40, 40], [5, 45, 25, 58], [0, 0, 90, 60], [40, 0, 90, 60]]
    masks = out['gt_masks'].to_ndarray()
    assert not masks[:3, :, 40:].any() and (out['img'][:, 40:] == 255).all() and (out['img'][:, :40] == 100).all()
    np.testing.assert_array_equal(out['gt_masks'].boxes()[[0, 1, 3]], out['gt_bboxes'][[0, 1, 3]])


@pytest.mark.parametrize('kept, target', [
    (True, rectangle(10, 10, 30, 20)),  # its right side moves by 10 pixels
    (False, rectangle(10, 10, 31, 20)),  # by 11; 10 x 10 are seen
    (True, rectangle(0, 10, 40, 26)),  # by 20; 20 x 16 are seen
    (False, rectangle(5, 10, 40, 30)),  # by 20; 15 x 20 = 300
    (True, rectangle(13, 10, 40, 53)),  # by 20; 7 x 43 = 301
    (True, rectangle(19, 1, 22, 2)),  # one pixel is
    (False, rectangle(21, 1, 30, 9)),  # nothing is seen of it
])  # fmt: skip
@pytest.mark.parametrize('by_box', [False, True])
def test_copy_paste_drops_objects_of_which_too_little_is_seen(kept, target, by_box):
    target = scene([target], 60, 90, mask=not by_box)
    source = scene([rectangle(20, 0, 80, 60)], 60, 90, mask=not by_box)
    out = CopyPaste(selected=False, paste_by_box=by_box)(dict(target, mix_results=[source]))
    assert len(out['gt_bboxes']) == 1 + kept and ('gt_masks' in out) is not by_box


def test_copy_paste_draws_how_many():
    source = [rectangle(9 * i, 0, 9 * i + 8, 8) for i in range(6)]
    counts, first = [], set()
    for seed in range(120):
        np.random.seed(seed)
        out = CopyPaste(max_num_pasted=4)(dict(scene([], 20, 60), mix_results=[scene(source, 20, 60)]))
        counts.append(len(out['gt_bboxes']))
        labels = set(out['gt_bboxes_labels'].tolist())
        first |= labels
        assert len(labels) == counts[-1]  # none twice
    assert set(counts) == {0, 1, 2, 3, 4} and first == set(range(6))
    out = CopyPaste(max_num_pasted=4, selected=False)(dict(scene([], 20, 60), mix_results=[scene(source, 20, 60)]))
    assert out['gt_bboxes_labels'].tolist() == [0, 1, 2, 3]
    assert CopyPaste().max_num_pasted == 100
    untouched = scene([rectangle(1.5, 2, 9.25, 9)], 20, 60)
    out = CopyPaste()(dict(untouched, mix_results=[scene([], 20, 60)]))
    np.testing.assert_array_equal(out['gt_bboxes'], untouched['gt_bboxes'])


def test_copy_paste_keeps_a_box_that_does_not_move():
    target, source = scene([rectangle(0, 0, 9, 9)], 20, 20), scene([rectangle(3, 3, 6, 6)], 20, 20)
    out = CopyPaste(bbox_occluded_thr=0, selected=False)(dict(target, mix_results=[source]))
    assert out['gt_bboxes'].tolist() == [[0, 0, 9, 9], [3, 3, 6, 6]]


def test_copy_paste_rounds_boxes_to_whole_pixels():
    target, source = (scene([rectangle(0, 0, 9, 9)], 20, 30, grey=grey, mask=False) for grey in (0, 255))
    source['img'][:] = 255
    target['gt_bboxes'][0], source['gt_bboxes'][0] = (-3, 0, 6, 2.6), (4.6, 0, 9.4, 3)
    out = CopyPaste(paste_by_box=True, selected=False)(dict(target, mix_results=[source]))
    expected = np.zeros((20, 30))
    expected[:3, 5:9] = 255
    assert (out['img'] == expected[..., None]).all()
    np.testing.assert_array_equal(out['gt_bboxes'], np.array([(0, 0, 5, 3), (4.6, 0, 9.4, 3)], np.float32))


def test_refusals():
    with pytest.raises(UserError, match='pipeline of a MultiImageMixDataset'):
        Mosaic()(scene([], 9, 9))
    with pytest.raises(UserError, match='paste_by_box'):
        CopyPaste()(dict(scene([], 9, 9, mask=False), mix_results=[scene([], 9, 9, mask=False)]))
    for wrong in (0.5, 2.01), (-0.01, 1), (1.5, 0.5):
        with pytest.raises(UserError, match='center_ratio_range'):
            Mosaic(center_ratio_range=wrong)


# The data set around another


@pytest.fixture(scope='module')
def shapes(tmp_path_factory) -> Path:
    return write_shapes(tmp_path_factory.mktemp('data') / 'shapes', train=4, val=1, size=96)


def mixed(shapes, pipeline=MIXING, loading=LOADING, wrapper='RepeatDataset') -> dict:
    inner = dict(
        type='CocoDataset', ann_file=str(shapes / 'annotations/instances_train.json'),
        data_prefix=dict(img=str(shapes / 'train')), pipeline=loading,
        metainfo=dict(classes=('circle', 'square', 'triangle', 'star')))
    inner = dict(type='RepeatDataset', times=2, dataset=inner) if wrapper == 'RepeatDataset' else inner
    inner = dict(type='ConcatDataset', datasets=[inner, inner]) if wrapper == 'ConcatDataset' else inner
    return dict(type='MultiImageMixDataset', dataset=inner, pipeline=pipeline)


def batches(cfg: dict, start: int = 0) -> list:
    with DefaultScope.overwrite_default_scope('mmdet'):
        loader = Runner.build_dataloader(seeded_dataloader(cfg, seed=3))
    loader.batch_sampler.start_at(start)
    return list(loader)


def test_any_workers_and_a_resumed_run_see_the_same_images(shapes):
    cfg = dict(batch_size=2, dataset=mixed(shapes), sampler=dict(type='DefaultSampler', shuffle=True),
               collate_fn=dict(type='pseudo_collate'))
    alone, workers = batches(dict(cfg, num_workers=0)), batches(dict(cfg, num_workers=2))
    resumed = batches(dict(cfg, num_workers=1), start=2)
    assert len(alone) == len(workers) == len(resumed) + 2 > 3
    for batch, other in [*zip(alone, workers), *zip(alone[2:], resumed)]:
        for image, same, sample, equal in zip(*(b[k] for k in ('inputs', 'data_samples') for b in (batch, other))):
            assert torch.equal(image, same)
            assert torch.equal(sample.gt_instances.bboxes, equal.gt_instances.bboxes)
    assert not all(torch.equal(alone[0]['inputs'][0], batch['inputs'][0]) for batch in alone[1:])


@pytest.mark.parametrize('wrapper', ['', 'ConcatDataset'])
def test_it_passes_on_what_the_data_set_says(shapes, wrapper):
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = MultiImageMixDataset(**{k: v for k, v in mixed(shapes, wrapper=wrapper).items() if k != 'type'})
    assert len(dataset) == len(dataset.dataset) and dataset.metainfo['classes'][0] == 'circle'
    assert dataset.get_data_info(1) == dataset.dataset.get_data_info(1)
    assert dataset.get_cat_ids(1) == dataset.dataset.get_cat_ids(1)
    assert dataset[0]['data_samples'].gt_instances.masks is not None


def test_a_rejected_image_is_replaced_and_endless_rejection_ends(shapes):
    crop = dict(type='RandomCrop', crop_size=(3, 3))
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = MultiImageMixDataset(mixed(shapes)['dataset'], [crop, dict(type='PackDetInputs')])
        tiny = MultiImageMixDataset(mixed(shapes)['dataset'], [lambda results: None], max_refetch=2)
    np.random.seed(0)
    assert all(len(dataset[i]['data_samples'].gt_instances) for i in range(4))
    with pytest.raises(UserError, match='rejected 3 images'):
        tiny[0]


@pytest.mark.parametrize('name', ['Mosaic', 'CopyPaste'])
def test_its_pipelines_are_checked_as_one(shapes, name):
    with DefaultScope.overwrite_default_scope('mmdet'), pytest.raises(UserError, match=f'{name} stands before LoadAnn'):
        MultiImageMixDataset(mixed(shapes)['dataset'], [dict(type=name), LOADING[1]])


def test_a_config_is_checked_where_its_pipeline_ends(shapes):
    cfg = load_config('configs/demo/mask_rcnn_r18_fpn_cbn_shapes.py')
    cfg.train_dataloader.dataset = mixed(shapes)
    check_values(cfg, training=True)
    cfg.train_dataloader.dataset = mixed(shapes, pipeline=MIXING[:-1])
    with pytest.raises(UserError, match='train_dataloader.dataset.pipeline must end with'):
        check_values(cfg, training=True)
