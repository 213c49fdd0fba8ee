"""What moves pixels moves boxes and masks with them; what changes colours follows its published steps."""

import sys
from importlib.util import find_spec

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdet.config.errors import UserError
from mmdet.datasets import (
    Albu,
    Expand,
    LoadAnnotations,
    MinIoURandomCrop,
    PhotoMetricDistortion,
    RandomAffine,
    TorchvisionTransform,
)
from mmdet.datasets.pipeline import build_steps, check_order, loaded_boxes
from mmdet.structures import BitmapMasks

HEIGHT, WIDTH = 90, 120


def stars(seed: int, count: int) -> list[np.ndarray]:
    """Star-shaped polygons at coordinates that are not whole numbers, (V, 2)."""
    rng = np.random.default_rng(seed)
    polygons = []
    for _ in range(count):
        angles = np.linspace(0, 2 * np.pi, 9)[:-1]
        radii = rng.uniform(9, 16, (8, 1))
        centre = rng.uniform(18, (WIDTH - 18, HEIGHT - 18))
        polygons.append(centre + radii * np.stack([np.cos(angles), np.sin(angles)], axis=1))
    return polygons


def scene(polygons: list[np.ndarray], bitmap: bool = False, crowds=()) -> dict:
    """What LoadAnnotations leaves of a black image with the polygons in white."""
    instances = [
        dict(bbox=[*p.min(0), *p.max(0)], bbox_label=i, ignore_flag=int(i in crowds), mask=[p.ravel().tolist()])
        for i, p in enumerate(polygons)
    ]
    shape = (HEIGHT, WIDTH)
    results = dict(img=None, img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0), instances=instances, img_id=1)
    results = LoadAnnotations(with_mask=True, poly2mask=bitmap)(results)
    white = results['gt_masks'].to_ndarray().any(axis=0) * np.uint8(255)
    results['img'] = np.repeat(white[..., None], 3, axis=2)
    return results


def applied(step, seed: int, results: dict) -> dict:
    np.random.seed(seed)
    torch.manual_seed(seed)
    return step(results)


def beyond_the_rim(mask: np.ndarray, other: np.ndarray, rim: int = 1) -> np.ndarray:
    """Where `mask` is outside `other` grown by `rim` pixels; what is beyond the image counts as either."""
    grown = cv2.dilate(other.astype(np.uint8), np.ones((2 * rim + 1, 2 * rim + 1), np.uint8)).astype(bool)
    outside = mask.astype(bool) & ~grown
    outside[:rim] = outside[-rim:] = outside[:, :rim] = outside[:, -rim:] = False
    return outside


def differ_only_at_the_rim(mask: np.ndarray, other: np.ndarray) -> bool:
    return not beyond_the_rim(mask, other).any() and not beyond_the_rim(other, mask).any()


ours = st.one_of(
    st.builds(Expand, ratio_range=st.just((1, 2)), prob=st.just(1)),
    st.builds(MinIoURandomCrop, bbox_clip_border=st.just(True)),
    st.builds(RandomAffine, scaling_ratio_range=st.just((0.8, 1.3)), border_val=st.just((0, 0, 0)),
              border=st.sampled_from([(0, 0), (-15, -5), (7, 11)])),
)
torchvision_moves = st.sampled_from(
    [
        dict(name='RandomHorizontalFlip', p=1.0),
        dict(name='RandomRotation', degrees=30, expand=True),
        dict(name='RandomAffine', degrees=20, translate=(0.1, 0.1), scale=(0.8, 1.2), shear=5),
        dict(name='RandomPerspective', distortion_scale=0.3, p=1.0),
        dict(name='RandomResizedCrop', size=(80, 100), scale=(0.8, 1.0), antialias=True),
        dict(name='RandomIoUCrop'),
        dict(name='RandomZoomOut', side_range=(1.0, 1.5), p=1.0),
        dict(name='Resize', size=(100, 100)),
        dict(name='CenterCrop', size=(60, 70)),
    ]
).map(lambda options: TorchvisionTransform(**options))


albumentations_moves = st.sampled_from(
    [
        dict(type='HorizontalFlip', p=1.0),
        dict(type='Affine', rotate=(-20, 20), shear=(-5, 5), p=1.0),
        dict(type='RandomCrop', height=70, width=90, p=1.0),
        dict(type='Perspective', p=1.0),
        dict(type='OneOf', transforms=[dict(type='RandomRotate90', p=1.0), dict(type='RandomGamma', p=1.0)]),
    ]
).map(lambda transform: Albu([transform]))


def check_sample(results: dict, count: int) -> None:
    """Image, masks and boxes of white objects agree; where all `count` are left, white is nowhere else."""
    masks, boxes = results['gt_masks'], results['gt_bboxes']
    assert results['img'].shape[:2] == results['img_shape'] == (masks.height, masks.width)
    assert len(boxes) == len(masks) == len(results['gt_bboxes_labels']) == len(results['gt_ignore_flags'])
    assert boxes.dtype == np.float32 and results['img'].dtype == np.uint8
    bitmaps = masks.to_ndarray()
    for mask, (x1, y1, x2, y2) in zip(bitmaps, boxes):
        mx1, my1, mx2, my2 = BitmapMasks(mask[None], *mask.shape).boxes()[0]
        assert not mask.any() or (mx1 >= x1 - 1.5 and my1 >= y1 - 1.5 and mx2 <= x2 + 1.5 and my2 <= y2 + 1.5)
    white = results['img'][..., 0]
    if len(boxes) == count:  # an object whose centre was cut off may still be seen
        union = bitmaps.any(axis=0) if count else np.zeros(white.shape, bool)
        # a spike of one pixel's width is grey where the image was resampled, and in the mask or not
        assert not beyond_the_rim(union, white > 32).any() and not beyond_the_rim(white > 223, union).any()


def check_in_step(step, seed, count):
    moved = [applied(step, seed, scene(stars(seed, count), bitmap)) for bitmap in (False, True)]
    for results in moved:
        check_sample(results, count)
    for mask, other in zip(moved[0]['gt_masks'].to_ndarray(), moved[1]['gt_masks'].to_ndarray(), strict=True):
        assert differ_only_at_the_rim(mask, other)


@pytest.mark.skipif(find_spec('albumentations') is None, reason='needs albumentations')
@given(step=albumentations_moves, seed=st.integers(0, 9999), count=st.integers(0, 4))
@settings(max_examples=25, deadline=None)
def test_albumentations_moves_image_boxes_and_masks_in_step(step, seed, count):
    check_in_step(step, seed, count)


@given(step=st.one_of(ours, torchvision_moves), seed=st.integers(0, 9999), count=st.integers(0, 4))
@settings(max_examples=80, deadline=None)
def test_image_boxes_and_masks_stay_in_step(step, seed, count):
    check_in_step(step, seed, count)


@pytest.mark.parametrize('step', [
    PhotoMetricDistortion(),
    TorchvisionTransform('ColorJitter', brightness=0.5, hue=0.2),
    TorchvisionTransform('GaussianBlur', kernel_size=3),
    TorchvisionTransform('RandomErasing', p=1.0),
])  # fmt: skip
def test_colours_leave_objects_alone(step):
    before = scene(stars(0, 3), crowds=[1])
    before['img'] = np.random.default_rng(0).integers(0, 255, before['img'].shape, dtype=np.uint8)
    for seed in range(3):
        after = applied(step, seed, dict(before))
        changed = [key for key in before if after[key] is not before[key]]
        assert changed == ['img'] and after['img'].dtype == np.uint8 and after['img'].shape == before['img'].shape
        assert (after['img'] != before['img']).any()
    check_order([step, LoadAnnotations()])


# SSD's colours


def turned_and_saturated(pixel, saturation, degrees):
    """A pixel (b, g, r) with its hue turned and its saturation multiplied, by the hexcone model (Smith 1978)."""
    b, g, r = (float(v) for v in pixel)
    value, span = max(b, g, r), max(b, g, r) - min(b, g, r)
    if value == 0:
        return pixel
    s = span / value * saturation
    sector = 0.0 if span == 0 else (
        (g - b) / span if value == r else 2 + (b - r) / span if value == g else 4 + (r - g) / span)
    sector = ((60 * sector + degrees) % 360) / 60

    def channel(n):  # how far a channel is below the value
        k = (n + sector) % 6
        return value - value * s * max(0, min(k, 4 - k, 1))

    return channel(1), channel(3), channel(5)


def distorted(img):
    """SSD's steps one after the other, numbers drawn in the order of `PhotoMetricDistortion`."""
    contrast_first, brighten, contrast, saturate, turn, swap = np.random.randint(2, size=6)
    factor = np.random.uniform(0.5, 1.5) if contrast else 1
    out = img.astype(float) + (np.random.uniform(-32, 32) if brighten else 0)
    out = out * factor if contrast_first else out
    saturation = np.random.uniform(0.5, 1.5) if saturate else 1
    degrees = np.random.uniform(-18, 18) if turn else 0
    out = np.array([[turned_and_saturated(pixel, saturation, degrees) for pixel in row] for row in out])
    out = out if contrast_first else out * factor
    return out[..., np.random.permutation(3)] if swap else out


def test_photo_metric_distortion_follows_its_steps():
    img = np.random.default_rng(1).integers(33, 256, (3, 4, 3)).astype(np.float32)
    flags = set()
    for seed in range(120):
        results = applied(PhotoMetricDistortion(), seed, dict(img=img))
        np.random.seed(seed)
        expected = distorted(img)
        np.testing.assert_allclose(results['img'], expected, atol=0.02, rtol=1e-3)
        assert results['img'].dtype == np.float32
        rounded = applied(PhotoMetricDistortion(), seed, dict(img=img.astype(np.uint8)))['img']
        assert rounded.dtype == np.uint8 and np.abs(rounded - expected.clip(0, 255)).max() <= 0.52
        np.random.seed(seed)
        flags.add(tuple(np.random.randint(2, size=6)))
    assert len(flags) > 45  # of 64


def test_photo_metric_distortion_takes_three_channels():
    with pytest.raises(UserError, match='3 channels'):
        PhotoMetricDistortion()(dict(img=np.zeros((4, 4), np.uint8)))


# SSD's zoom and crop


def test_expand_puts_the_image_somewhere_on_a_larger_one():
    ratios, places, corners, img = [], [], [], np.full((20, 30, 3), 200, np.uint8)
    for seed in range(300):
        boxes = np.array([[2.5, 3, 10, 12]], np.float32)
        given_boxes = dict(img=img, gt_bboxes=boxes, proposals=boxes + 1)
        results = applied(Expand(mean=(10, 20, 30)), seed, given_boxes)
        height, width = results['img'].shape[:2]
        if (height, width) == (20, 30):
            continue
        assert results['img_shape'] == (height, width) and results['img'].dtype == np.uint8
        assert (np.unique(results['img'].reshape(-1, 3), axis=0) == [[30, 20, 10], [200] * 3]).all()
        ys, xs = np.nonzero(results['img'][..., 0] == 200)
        assert len(ys) == 600
        left, top = xs.min(), ys.min()
        np.testing.assert_array_equal(results['gt_bboxes'], boxes + [left, top, left, top])
        np.testing.assert_array_equal(results['proposals'], boxes + 1 + [left, top, left, top])
        corners.append((left, top))
        ratios.append(width / 30)
        places.append(((left + 0.5) / (width - 29), (top + 0.5) / (height - 19)))
    assert 0.4 < len(ratios) / 300 < 0.6 and 1 < min(ratios) < 1.15 and 3.85 < max(ratios) <= 4
    assert np.abs(np.mean(places, axis=0) - 0.5).max() < 0.1 and np.min(places) < 0.1 and np.max(places) > 0.9
    assert np.min(corners, axis=0).tolist() == [0, 0]
    assert applied(Expand(prob=1), 3, dict(img=img))['img'][0, 0].tolist() == [0, 0, 0]
    assert applied(Expand(mean=(1, 2, 3), to_rgb=False, prob=1), 3, dict(img=img))['img'][0, 0].tolist() == [1, 2, 3]


def test_expand_follows_its_draws():
    img = np.full((20, 30, 3), 200, np.uint8)
    for seed in range(300):
        out = applied(Expand(), seed, dict(img=img))['img']
        np.random.seed(seed)
        chance, ratio = np.random.uniform(), np.random.uniform(1, 4)
        left, top = (int(np.random.uniform(0, side * ratio - side)) for side in (30, 20))
        ratio, left, top = (ratio, left, top) if chance < 0.5 else (1, 0, 0)
        ys, xs = np.nonzero(out[..., 0])
        assert (*out.shape[:2], xs.min(), ys.min()) == (int(20 * ratio), int(30 * ratio), left, top)


def test_expand_takes_a_range_from_one():
    image = dict(img=np.zeros((4, 5, 3), np.uint8))
    assert Expand(ratio_range=(2, 2), prob=1)(image)['img_shape'] == (8, 10)
    for wrong in (0.5, 2), (3, 2):
        with pytest.raises(UserError, match='ratio_range'):
            Expand(ratio_range=wrong)


def windows(step: MinIoURandomCrop, results: dict, seeds: int) -> list[tuple]:
    """(x1, y1, x2, y2) of each draw, read from an image whose pixels say where they are."""
    found = []
    for seed in range(seeds):
        rows, columns = np.mgrid[:100, :200].astype(np.uint8)
        img = np.stack([rows, columns, columns], axis=2)
        seen = applied(step, seed, dict(results, img=img))['img']
        found.append((seen[0, 0, 1], seen[0, 0, 0], seen[-1, -1, 1] + 1, seen[-1, -1, 0] + 1))
    return np.array(found, dtype=int)


def test_min_iou_crop_draws_shapes_evenly_and_the_whole_image_once_in_seven():
    found = windows(MinIoURandomCrop(), {}, 700)
    whole = (found == [0, 0, 200, 100]).all(axis=1)
    assert abs(whole.mean() - 1 / 7) < 0.04
    sides = (found[:, 2:] - found[:, :2])[~whole] / (200, 100)
    assert 0.28 < sides.min() < 0.33 and sides.max() > 0.97
    longest = (sides * (200, 100)).max(axis=1) / (sides * (200, 100)).min(axis=1)
    assert 1.9 < longest.max() < 2.1
    assert found[:, 0].min() == 0 and found[:, 2].max() == 200


@pytest.mark.parametrize('iou', [0.1, 0.5])
def test_min_iou_crop_keeps_objects_by_overlap_and_centre(iou):
    boxes = np.array([[20, 10, 110, 80], [40.5, 30, 150, 95], [0, 0, 200, 100]], np.float32)
    results = dict(gt_bboxes=boxes, gt_bboxes_labels=np.arange(3), gt_ignore_flags=np.array([False, False, True]))
    met = 0
    for seed in range(60):
        out = applied(MinIoURandomCrop(min_ious=[iou]), seed, dict(results, img=np.zeros((100, 200, 3), np.uint8)))
        window = windows(MinIoURandomCrop(min_ious=[iou]), results, seed + 1)[-1] if seed < 12 else None
        assert 2 in out['gt_bboxes_labels'] and set(out['gt_bboxes_labels']) & {0, 1}
        if window is None:
            continue
        x1, y1, x2, y2 = window
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        kept = ((centres > [x1, y1]) & (centres < [x2, y2])).all(axis=1)
        kept[2] = True
        assert out['gt_bboxes_labels'].tolist() == np.flatnonzero(kept).tolist()
        expected = (boxes[kept] - [x1, y1, x1, y1]).clip(0, [x2 - x1, y2 - y1] * 2)
        np.testing.assert_allclose(out['gt_bboxes'], expected)
        met += len(out['gt_bboxes'])
    assert met


class Counted(MinIoURandomCrop):
    """Remembers the windows it drew; its modes are those that are given."""

    def __init__(self, modes, **options):
        super().__init__(**options)
        self.modes, self.drawn = iter(modes), []

    def _draw_window(self, height, width):
        self.drawn.append(super()._draw_window(height, width))
        return self.drawn[-1]


@pytest.mark.parametrize('modes, tries', [([3], None), ([4, 0], 50)])  # an IoU of 0.6; one of 1, then the whole image
def test_min_iou_crop_meets_the_drawn_overlap_or_draws_another_after_50_windows(modes, tries, monkeypatch):
    box = np.array([[20, 10, 110, 80]], np.float32)
    for seed in range(10):
        step = Counted(modes, min_ious=[0.1, 0.6, 1.0])
        monkeypatch.setattr(np.random, 'randint', lambda n, step=step: next(step.modes, 0))
        img = np.zeros((100, 200, 3), np.uint8)
        out = applied(step, seed, dict(img=img, gt_bboxes=box, gt_ignore_flags=np.array([False])))
        if tries:
            assert len(step.drawn) == tries and out['img'] is img
        elif out['img'] is not img:
            x1, y1, x2, y2 = step.drawn[-1]
            inter = (min(x2, 110) - max(x1, 20)) * (min(y2, 80) - max(y1, 10))
            assert inter / ((x2 - x1) * (y2 - y1) + 90 * 70 - inter) >= 0.6


@pytest.mark.parametrize('mode, iou', [(2, 0.1), (3, 0.3), (4, 0.5), (5, 0.7), (6, 0.9)])
def test_min_iou_crop_draws_from_its_published_overlaps(mode, iou, monkeypatch):
    box = np.array([[0, 0, 200, 100]], np.float32)
    shares = []
    for seed in range(60):
        step = Counted([mode])
        monkeypatch.setattr(np.random, 'randint', lambda n, step=step: next(step.modes, 0))
        img = np.zeros((100, 200, 3), np.uint8)
        out = applied(step, seed, dict(img=img, gt_bboxes=box, gt_ignore_flags=np.array([False])))
        if out['img'] is not img:
            shares.append(out['img'].shape[0] * out['img'].shape[1] / 20000)
    assert iou <= min(shares) < iou + 0.1 and MinIoURandomCrop().min_ious[mode - 2] == iou


def test_min_iou_crop_may_also_ask_for_no_overlap(monkeypatch):
    """The second of its modes: of a small object the centre is in the window, and no more is asked."""
    box = np.array([[90, 45, 110, 55]], np.float32)
    for seed in range(10):
        step = Counted([1])
        monkeypatch.setattr(np.random, 'randint', lambda n, step=step: next(step.modes, 0))
        out = applied(step, seed, dict(img=np.zeros((100, 200, 3), np.uint8), gt_bboxes=box))
        x1, y1, x2, y2 = step.drawn[-1]
        assert len(out['gt_bboxes']) == 1 and 200 / ((x2 - x1) * (y2 - y1)) < 0.15


@pytest.mark.parametrize('height, width', [(100, 200), (3, 2)])
def test_min_iou_crop_follows_its_draws(height, width):
    """Of windows longer than twice their width, or without a pixel, another is drawn."""
    img = np.arange(height * width).reshape(height, width)
    for seed in range(100):
        found = applied(MinIoURandomCrop(), seed, dict(img=img))['img']
        np.random.seed(seed)
        expected = img
        while expected is img and np.random.randint(7):
            for _ in range(50):
                w, h = np.random.uniform(0.3, 1, 2) * (width, height)
                x, y = np.random.uniform(0, 1, 2) * (width - w, height - h)
                window = img[int(y) : int(y + h), int(x) : int(x + w)]
                if window.size and max(w, h) <= 2 * min(w, h):
                    expected = window
                    break
        assert np.array_equal(found, expected)


def test_min_iou_crop_at_the_edges(monkeypatch):
    """A centre on the window's edge is outside; an overlap of just what is asked is enough."""
    whole, inside = [0, 0, 20, 10], [-18, -8, 20, 10]
    boxes = np.array([inside, [-5, 0, 5, 10], [15, 0, 25, 10], [0, -5, 20, 5], [0, 5, 20, 15]], np.float32)
    results = dict(img=np.zeros((10, 20, 3), np.uint8), gt_bboxes=boxes)
    monkeypatch.setattr(np.random, 'randint', lambda n: 1)
    step = MinIoURandomCrop([], min_crop_size=1, bbox_clip_border=False)
    assert step(dict(results))['gt_bboxes'].tolist() == [inside]
    step = Counted([2, 0], min_ious=[1], min_crop_size=1)
    monkeypatch.setattr(np.random, 'randint', lambda n: next(step.modes))
    step(dict(results, gt_bboxes=np.array([whole], np.float32)))
    assert step.drawn == [tuple(whole)]
    for ignored in False, True:  # every object that is not ignored must overlap
        step, flags = Counted([2, 0], min_ious=[0.5], min_crop_size=1), np.array([ignored, False])
        step(dict(results, gt_bboxes=np.array([whole, [9, 4, 11, 6]], np.float32), gt_ignore_flags=flags))
        assert len(step.drawn) == 50


@pytest.mark.parametrize('options', [
    dict(min_ious=[0.5, 1.01]), dict(min_ious=[-0.01]), dict(min_crop_size=0), dict(min_crop_size=1.01),
])  # fmt: skip
def test_min_iou_crop_takes_shares(options):
    MinIoURandomCrop(min_ious=[0, 1], min_crop_size=1)
    with pytest.raises(UserError, match='must be shares, 0 to 1'):
        MinIoURandomCrop(**options)


# RandomAffine


def slow_affine(rotate, scale, shear_x, shear_y, shift, point):
    """Where a point goes: scaled, rotated, sheared, shifted, one after the other."""
    x, y = point[0] * scale, point[1] * scale
    a = np.deg2rad(rotate)
    x, y = x * np.cos(a) - y * np.sin(a), x * np.sin(a) + y * np.cos(a)
    x, y = x + np.tan(np.deg2rad(shear_x)) * y, np.tan(np.deg2rad(shear_y)) * x + y
    return x + shift[0], y + shift[1]


def test_random_affine_follows_its_steps_and_default_ranges():
    for seed in range(20):
        box = np.array([[50.0, 40, 52, 43]], np.float32)
        img = np.zeros((100, 200, 3), np.uint8)
        out = applied(RandomAffine(bbox_clip_border=False), seed, dict(img=img, gt_bboxes=box))
        np.random.seed(seed)
        rotate, scale = np.random.uniform(-10, 10), np.random.uniform(0.5, 1.5)
        shear, shift = np.random.uniform(-2, 2, 2), np.random.uniform(-0.1, 0.1, 2) * (200, 100)
        corners = [slow_affine(rotate, scale, *shear, shift, (x, y)) for x in (50, 52) for y in (40, 43)]
        expected = [*np.min(corners, axis=0), *np.max(corners, axis=0)]
        np.testing.assert_allclose(out['gt_bboxes'], [expected], atol=1e-3)


def test_random_affine_fills_and_crops():
    still = dict(max_rotate_degree=0, max_shear_degree=0, max_translate_ratio=0, scaling_ratio_range=(0.5, 0.5))
    img = np.full((40, 60, 3), 250, np.uint8)
    out = RandomAffine(**still)(dict(img=img))['img']
    assert out.shape == img.shape and (out[:19, :29] == 250).all() and (out[21:, 31:] == 114).all()
    crowd = scene([np.array([[100.0, 70], [118, 70], [118, 88]]), np.array([[2.0, 2], [9, 2], [9, 9]])], crowds=[1])
    out = RandomAffine(border=(-30, -20), **{**still, 'scaling_ratio_range': (1, 1)})(crowd)
    assert out['img_shape'] == (50, 60) and out['gt_bboxes_labels'].tolist() == [1] and out['gt_ignore_flags'].all()
    with pytest.raises(UserError, match='leaves nothing'):
        RandomAffine(border=(-60, 0))(scene([]))
    assert RandomAffine(border=(0, -45 + 1), **still)(scene([]))['img_shape'] == (2, 120)
    assert RandomAffine(border=(-2, -2), **still)(dict(img=img[:5, :5]))['img_shape'] == (1, 1)


def test_random_affine_clips_boxes_unless_it_is_told_not_to():
    still = dict(max_rotate_degree=0, max_shear_degree=0, max_translate_ratio=0, scaling_ratio_range=(2, 2))
    img, boxes = np.zeros((40, 60, 3), np.uint8), np.array([[10, 10, 50, 15]], np.float32)
    for options, right in ({}, 60), (dict(bbox_clip_border=False), 100):
        out = RandomAffine(**still, **options)(dict(img=img, gt_bboxes=boxes))
        assert out['gt_bboxes'].tolist() == [[20, 20, right, 30]]


@pytest.mark.parametrize('options, message', [
    (dict(scaling_ratio_range=(1.5, 0.5)), 'scaling_ratio_range'),
    (dict(scaling_ratio_range=(0, 0.5)), 'scaling_ratio_range'),
    (dict(max_translate_ratio=1.01), 'max_translate_ratio'),
    (dict(max_translate_ratio=-0.01), 'max_translate_ratio'),
])  # fmt: skip
def test_random_affine_refuses_ranges_that_are_none(options, message):
    RandomAffine(scaling_ratio_range=(0.5, 0.5), max_translate_ratio=1)
    with pytest.raises(UserError, match=message):
        RandomAffine(**options)


# albumentations


@pytest.mark.skipif(find_spec('albumentations') is None, reason='needs albumentations')
def test_albu_keeps_fields_with_their_boxes_and_draws_from_numpy():
    crop = Albu([dict(type='Crop', x_min=60, x_max=WIDTH, y_max=HEIGHT)],
                bbox_params=dict(type='BboxParams', format='pascal_voc', label_fields=['gt_bboxes_labels']))
    left, right = (np.array([[x, 10.5], [x + 20, 10.5], [x + 20, 40]]) for x in (8.0, 80.25))
    out = crop(scene([left, right, right + 5], crowds=[2]))
    assert out['gt_bboxes_labels'].tolist() == [1, 2] and out['gt_ignore_flags'].tolist() == [False, True]
    np.testing.assert_allclose(out['gt_bboxes'][0], [20.25, 10.5, 40.25, 40], atol=1e-3)
    assert Albu(crop_all := [dict(type='Crop', x_max=5, y_max=5)])(scene([right])) is not None
    assert Albu(crop_all, skip_img_without_anno=True)(scene([right])) is None

    img = np.random.default_rng(0).integers(0, 255, (8, 9, 3), dtype=np.uint8)
    noise = Albu([dict(type='GaussNoise', p=1.0)])
    first, second, other = (applied(noise, seed, dict(img=img))['img'] for seed in (1, 1, 2))
    assert (first == second).all() and (first != other).any()
    boxes = scene([left])
    assert applied(noise, 0, dict(boxes))['gt_masks'] is boxes['gt_masks'] and not noise.changes_geometry
    grey = Albu([dict(type='ToGray', p=1.0)])(dict(img=img))['img']
    assert np.abs(grey[..., 0] - img @ [0.114, 0.587, 0.299]).max() < 1.1


@pytest.mark.skipif(find_spec('albumentations') is None, reason='needs albumentations')
def test_albu_moves_rgb_images_and_drops_objects_of_which_too_little_is_seen():
    img = np.random.default_rng(0).integers(0, 255, (8, 9, 3), dtype=np.uint8)
    flip, grey = dict(type='HorizontalFlip', p=1.0), dict(type='ToGray', p=1.0)
    flipped, greyed = (Albu(steps)(dict(img=img, img_shape=(8, 9)))['img'] for steps in ([flip], [flip, grey]))
    assert (flipped == img[:, ::-1]).all()
    assert np.abs(greyed[:, ::-1, 0] - img @ [0.114, 0.587, 0.299]).max() < 1.1
    crop = [dict(type='Crop', x_max=50, y_max=HEIGHT)]
    for options, labels in ({}, [0, 1]), (dict(bbox_params=dict(min_visibility=0.5)), [0]):
        results = scene([np.array([[40, 10], [right, 10], [right, 20]]) for right in (58.0, 62.0)])
        assert Albu(crop, **options)(results)['gt_bboxes_labels'].tolist() == labels


@pytest.mark.skipif(find_spec('albumentations') is None, reason='needs albumentations')
@pytest.mark.parametrize('options, message', [
    (dict(transforms=[dict(type='Nope')]), "no transform 'Nope'"),
    (dict(transforms=[dict(type='HorizontalFlip', q=1)]), 'q'),
    (dict(transforms=[], bbox_params=dict(format='coco')), 'pascal_voc'),
    (dict(transforms=[], bbox_params=dict(min_visibilty=1)), 'min_visibilty'),
    (dict(transforms=[], keymap=dict(img='photo')), 'keymap'),
])  # fmt: skip
def test_albu_refuses_what_it_does_not_know(options, message):
    with pytest.raises(UserError, match=message):
        Albu(**options)


def test_albu_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'albumentations', None)
    with pytest.raises(ImportError, match='pip install albumentations'):
        Albu([])


# torchvision's


def test_torchvision_sees_rgb_and_draws_from_torch():
    img = np.random.default_rng(0).integers(0, 255, (8, 9, 3), dtype=np.uint8)
    grey = TorchvisionTransform('Grayscale', num_output_channels=3)(dict(img=img))['img']
    assert np.abs(grey[..., 0] - img @ [0.114, 0.587, 0.299]).max() < 1.1
    for same in TorchvisionTransform('Identity'), TorchvisionTransform('Resize', size=(8, 9)):  # and gives BGR again
        assert (same(dict(img=img, img_shape=(8, 9)))['img'] == img).all()
    jitter = TorchvisionTransform('ColorJitter', brightness=0.5)
    first, second, other = (applied(jitter, seed, dict(img=img))['img'] for seed in (1, 1, 2))
    assert (first == second).all() and (first != other).any()


def test_torchvision_moves_images_without_objects_and_says_how_they_were_scaled():
    results = scene([])
    results = applied(TorchvisionTransform('Resize', size=(45, 240)), 0, results)
    assert results['img_shape'] == (45, 240) and results['scale_factor'] == (2.0, 0.5)
    assert results['gt_bboxes'].shape == (0, 4) and len(results['gt_masks']) == 0


@pytest.mark.parametrize('options, message', [
    (dict(name='ColourJitter'), 'no such transform'),
    (dict(name='functional'), 'no such transform'),
    (dict(name='ColorJitter', brightnes=1), 'brightnes'),
    (dict(name='ColorJitter', brightness=-1), 'ColorJitter'),
])  # fmt: skip
def test_torchvision_refuses_what_it_has_not(options, message):
    with pytest.raises(UserError, match=message):
        build_steps([dict(type='torchvision', **options)])


def test_torchvision_refuses_what_does_not_fit_a_pipeline():
    with pytest.raises(UserError, match='not supported by FiveCrop'):
        TorchvisionTransform('FiveCrop', size=20)(scene(stars(1, 4)))
    with pytest.raises(UserError, match='no single image'):
        TorchvisionTransform('FiveCrop', size=20)(dict(img=np.zeros((40, 40, 3), np.uint8)))
    with pytest.raises(UserError, match='drops objects itself'):
        TorchvisionTransform('SanitizeBoundingBoxes', labels_getter=None, min_size=60)(scene(stars(1, 4)))


# The checks of pipelines


@pytest.mark.parametrize('step', [
    dict(type='Expand'), dict(type='MinIoURandomCrop'), dict(type='RandomAffine'),
    dict(type='torchvision', name='RandomRotation', degrees=9),
])  # fmt: skip
def test_pixels_are_not_moved_before_objects_are_loaded(step):
    before, after = build_steps([step, dict(type='LoadAnnotations')]), build_steps([dict(type='LoadAnnotations'), step])
    with pytest.raises(UserError, match='stands before LoadAnnotations'):
        check_order(before)
    check_order(after)
    assert loaded_boxes(before) == 'original' and loaded_boxes(after) == 'input'


@pytest.mark.parametrize('step', [MinIoURandomCrop(), TorchvisionTransform('Resize', size=(9, 9))])
def test_proposals_are_refused_where_they_are_not_moved(step):
    with pytest.raises(UserError, match='does not move proposals'):
        step(dict(img=np.zeros((9, 9, 3), np.uint8), proposals=np.zeros((1, 4), np.float32)))
