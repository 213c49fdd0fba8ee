import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from mmdet.config.errors import UserError
from mmdet.datasets import (
    FilterAnnotations,
    FixShapeResize,
    LoadAnnotations,
    LoadImageFromFile,
    PackDetInputs,
    Pad,
    RandomChoiceResize,
    RandomCrop,
    RandomFlip,
    RandomResize,
    Resize,
)
from mmdet.structures import BitmapMasks, PolygonMasks


def scene(rectangles, height=60, width=90, bitmap=False, crowds=()):
    """What LoadAnnotations leaves of a black image with grey rectangles, one grey per object."""
    img = np.zeros((height, width, 3), dtype=np.uint8)
    instances = []
    for i, (x1, y1, x2, y2) in enumerate(rectangles):
        img[y1:y2, x1:x2] = 60 + 60 * i
        polygon = [x1, y1, x2, y1, x2, y2, x1, y2]
        box = [x1, y1, x2, y2]
        instances.append(dict(bbox=box, bbox_label=i, ignore_flag=int(i in crowds), mask=[polygon]))
    shape = (height, width)
    results = dict(img=img, img_shape=shape, ori_shape=shape, instances=instances, img_id=1)
    return LoadAnnotations(with_mask=True, poly2mask=bitmap)(results)


def seen_boxes(results):
    """Boxes of the greys in the image, found in its pixels."""
    boxes = []
    for label in results['gt_bboxes_labels']:
        mask = np.abs(results['img'][..., 0].astype(int) - (60 + 60 * label)) < 28
        boxes.append(BitmapMasks(mask[None], *mask.shape).boxes()[0])
    return np.array(boxes, dtype=np.float32).reshape(-1, 4)


transforms = st.one_of(
    st.builds(
        Resize,
        scale=st.tuples(st.integers(50, 200), st.integers(50, 200)),
        keep_ratio=st.booleans(),
        interpolation=st.just('nearest'),
    ),
    st.builds(RandomFlip, st.just(1.0), st.sampled_from(['horizontal', 'vertical', 'diagonal'])),
    st.builds(
        RandomCrop, st.tuples(st.integers(30, 90), st.integers(30, 90)), allow_negative_crop=st.just(True)
    ),
    st.builds(
        RandomCrop,
        st.tuples(st.floats(0.5, 1), st.floats(0.5, 1)),
        st.sampled_from(['relative', 'relative_range']),
        allow_negative_crop=st.just(True),
    ),
    st.builds(RandomResize, st.just((90, 60)), st.just((0.8, 1.9)), interpolation=st.just('nearest')),
    st.builds(RandomResize, st.just([(90, 40), (150, 80)]), interpolation=st.just('nearest')),
    st.builds(
        RandomChoiceResize,
        st.just([(90, 70), (120, 61)]),
        keep_ratio=st.booleans(),
        interpolation=st.just('nearest'),
    ),
    st.builds(
        FixShapeResize,
        st.integers(60, 200),
        st.integers(60, 200),
        keep_ratio=st.booleans(),
        interpolation=st.just('nearest'),
    ),
    st.builds(Pad, size_divisor=st.sampled_from([16, 32])),
    st.builds(Pad, pad_to_square=st.just(True)),
)


@given(steps=st.lists(transforms, min_size=1, max_size=5), bitmap=st.booleans(), seed=st.integers(0, 9999))
@settings(max_examples=150, deadline=None)
def test_boxes_masks_and_pixels_stay_in_step(steps, bitmap, seed):
    np.random.seed(seed)
    results = scene([(8, 10, 40, 34), (50, 30, 88, 58), (60, 3, 70, 16)], bitmap=bitmap)
    slack = 1.01
    for step in steps:
        results = step(results)
        if not isinstance(step, (RandomFlip, RandomCrop, Pad)):  # a resize may round an edge to a pixel
            slack = slack * max(1.0, *results['scale_factor']) + 1
    boxes, masks = results['gt_bboxes'], results['gt_masks']
    assert len(boxes) == len(masks) == len(results['gt_bboxes_labels']) == len(results['gt_ignore_flags'])
    assert results['img'].shape[:2] == results['img_shape'] == (masks.height, masks.width)
    assert boxes.dtype == np.float32
    large = (boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=99) > 2 * slack  # a sliver may have no pixel
    if bitmap:
        np.testing.assert_allclose(masks.boxes()[large], boxes[large], atol=slack)
    else:
        np.testing.assert_allclose(masks.boxes(), boxes, atol=0.01)
    np.testing.assert_allclose(seen_boxes(results)[large], boxes[large], atol=slack)


@pytest.mark.parametrize(
    'size, expected',
    [
        ((480, 640), (800, 1067)),
        ((640, 480), (1067, 800)),
        ((500, 2000), (333, 1333)),
        ((800, 1333), (800, 1333)),
    ],
)
def test_resize_keeps_within_the_long_and_the_short_side(size, expected):
    results = Resize(scale=(1333, 800), keep_ratio=True)(dict(img=np.zeros((*size, 3), np.uint8)))
    assert results['img_shape'] == results['img'].shape[:2] == expected
    assert results['scale_factor'] == (expected[1] / size[1], expected[0] / size[0])


def test_resize_by_a_factor_and_to_a_fixed_size():
    img = np.zeros((40, 60, 3), np.uint8)
    assert Resize(scale_factor=0.5)(dict(img=img))['img_shape'] == (20, 30)
    assert Resize(scale_factor=(0.5, 2.0))(dict(img=img))['img_shape'] == (80, 30)
    assert Resize(scale=(10, 20))(dict(img=img))['img_shape'] == (20, 10)
    assert Resize(scale=32)(dict(img=img))['img_shape'] == (32, 32)


@pytest.mark.parametrize('size, inside', [((480, 640), (120, 160)), ((640, 480), (120, 90)), ((30, 300), (20, 200))])
def test_every_image_is_fitted_into_one_size(size, inside):
    step = FixShapeResize(width=200, height=120, keep_ratio=True, pad_val=(7, 8, 9))
    results = step(dict(img=np.full((*size, 3), 50, np.uint8)))
    assert results['img_shape'] == results['img'].shape[:2] == (120, 200)
    assert (results['img'] == 50).all(-1).sum() == inside[0] * inside[1]
    assert results['img'][-1, -1].tolist() == [7, 8, 9]
    assert results['scale_factor'] == (inside[1] / size[1], inside[0] / size[0])
    results = FixShapeResize(200, 120)(dict(img=np.full((*size, 3), 50, np.uint8)))
    assert (results['img'] == 50).all() and results['scale_factor'] == (200 / size[1], 120 / size[0])


def test_an_image_without_objects_passes_everything():
    results = scene([], bitmap=False)
    for step in (Resize((120, 80)), RandomFlip(1.0), RandomCrop((50, 50), allow_negative_crop=True),
                 FilterAnnotations((1, 1)), Pad(size_divisor=32), PackDetInputs()):  # fmt: skip
        results = step(results)
    sample = results['data_samples']
    for data in (sample.gt_instances, sample.ignored_instances):
        assert data.bboxes.shape == (0, 4) and data.bboxes.dtype == torch.float32
        assert data.labels.shape == (0,) and data.labels.dtype == torch.int64
        assert len(data.masks) == 0
    assert results['inputs'].shape == (3, 64, 64)


@pytest.mark.parametrize('prob, direction', [(0.5, 'horizontal'), ([0.2, 0.3], ['horizontal', 'vertical'])])
def test_flip_is_drawn_with_its_probability(prob, direction):
    np.random.seed(0)
    flip = RandomFlip(prob, direction)
    drawn = [flip(dict(img=np.zeros((2, 2, 3), np.uint8)))['flip_direction'] for _ in range(2000)]
    wanted = dict(zip([direction] if isinstance(prob, float) else direction, np.atleast_1d(prob)))
    for name, chance in wanted.items():
        assert abs(drawn.count(name) / 2000 - chance) < 0.04
    assert set(drawn) == {None, *wanted}


def test_random_scales_stay_in_range():
    np.random.seed(0)
    widths = set()
    step = RandomResize([(100, 50), (200, 80)], keep_ratio=False)
    for _ in range(300):
        height, width = step(dict(img=np.zeros((30, 40, 3), np.uint8)))['img_shape']
        assert 100 <= width <= 200 and 50 <= height <= 80
        widths.add(width)
    assert min(widths) < 105 and max(widths) > 195
    step = RandomChoiceResize([(40, 20), 32])
    shapes = {step(dict(img=np.zeros((9, 9, 3), np.uint8)))['img_shape'] for _ in range(40)}
    assert shapes == {(20, 40), (32, 32)}


@pytest.mark.parametrize(
    'step, shapes',
    [
        (RandomResize([(400, 600), (600, 800)]), [(687, 579), (724, 439), (629, 567)]),
        (RandomResize([(400, 600), (600, 800)], keep_ratio=True), [(434, 687), (439, 696), (397, 629)]),
        (RandomResize((1333, 800), (0.5, 2.0)), [(1184, 1973), (535, 891), (1367, 2277)]),
        (RandomCrop((0.3, 0.6), 'relative_range', allow_negative_crop=True), [(228, 308), (114, 462), (260, 373)]),
    ],
)
def test_draws_are_those_of_mmdetection(step, shapes):
    """Recorded with mmdetection 3.3: sizes of an image of 301 x 477 after np.random.seed(1000), 1017, 1034."""
    for seed, shape in zip((1000, 1017, 1034), shapes):
        np.random.seed(seed)
        assert step(dict(img=np.zeros((301, 477, 3), np.uint8)))['img_shape'] == shape


def test_crop_drops_and_clips():
    np.random.seed(3)
    step = RandomCrop((40, 30))
    for _ in range(50):
        results = step(scene([(0, 0, 20, 20), (70, 40, 88, 58)]))
        if results is None:
            continue
        assert results['img_shape'] == (30, 40)
        boxes = results['gt_bboxes']
        assert len(boxes) >= 1
        assert (boxes >= 0).all() and (boxes <= [40, 30, 40, 30]).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
    np.random.seed(0)
    assert any(RandomCrop((5, 5))(scene([(0, 0, 3, 3)])) is None for _ in range(20))
    assert all(RandomCrop((5, 5))(scene([(0, 0, 90, 60)], crowds=(0,))) is None for _ in range(3))


def test_crop_can_take_boxes_from_the_masks():
    results = scene([(0, 0, 60, 60)])
    results['gt_masks'] = PolygonMasks([[[0, 0, 60, 0, 0, 60]]], 60, 90)  # the upper left half
    np.random.seed(1)
    results = RandomCrop((40, 40), recompute_bbox=True)(results)
    np.testing.assert_array_equal(results['gt_bboxes'], results['gt_masks'].boxes())


def test_crop_drops_an_object_whose_mask_it_leaves_out():
    """Its box of no size would make the loss NaN."""
    results = scene([(0, 0, 90, 60), (0, 0, 90, 60)])
    corner, whole = [[0, 0, 9, 0, 0, 9]], [[0, 0, 90, 0, 90, 60, 0, 60]]
    results['gt_masks'] = PolygonMasks([corner, whole], 60, 90)
    step = RandomCrop((40, 40), recompute_bbox=True)
    kept = []
    for seed in range(10):
        np.random.seed(seed)
        cropped = step(dict(results))
        assert (cropped['gt_bboxes'][:, 2:] > cropped['gt_bboxes'][:, :2]).all()
        kept.append(cropped['gt_bboxes_labels'].tolist())
    assert [1] in kept and all(len(labels) in (1, 2) for labels in kept)


def test_a_crowd_keeps_its_outline():
    """Its RLE does not turn the image's polygons into bitmaps, unless bitmaps are asked for."""
    heap = np.zeros((40, 50), dtype=np.uint8)
    heap[5:20, 8:30] = heap[25:35, 30:45] = 1
    heap[8:12, 10:14] = 0
    rle = coco_mask.encode(np.asfortranarray(heap))
    instances = [
        dict(bbox=[0, 0, 9, 9], bbox_label=0, ignore_flag=0, mask=[[0, 0, 9, 0, 9, 9]]),
        dict(bbox=[8, 5, 45, 35], bbox_label=0, ignore_flag=1, mask=rle),
    ]
    results = LoadAnnotations(with_mask=True)(dict(ori_shape=(40, 50), instances=instances))
    masks = results['gt_masks']
    assert isinstance(masks, PolygonMasks) and len(masks.polygons[1]) == 2
    np.testing.assert_allclose(masks.boxes()[1], [8, 5, 45, 35], atol=0.5)
    assert 0.85 < masks.areas[1] / (15 * 22 + 10 * 15) <= 1
    assert instances[1]['mask'] is rle
    exact = LoadAnnotations(with_mask=True, poly2mask=True)(dict(ori_shape=(40, 50), instances=instances))
    np.testing.assert_array_equal(exact['gt_masks'].masks[1], heap)


def test_filter():
    rectangles = [(0, 0, 30, 30), (40, 40, 42, 50), (60, 10, 75, 25)]
    results = FilterAnnotations(min_gt_bbox_wh=(4, 4))(scene(rectangles))
    assert results['gt_bboxes_labels'].tolist() == [0, 2] and len(results['gt_masks']) == 2
    assert FilterAnnotations(min_gt_bbox_wh=(2, 9.9))(scene(rectangles))['gt_bboxes_labels'].tolist() == [0, 2]
    with pytest.raises(ValueError, match='with_mask=True'):
        FilterAnnotations(by_mask=True)(dict(gt_bboxes=np.zeros((1, 4), np.float32)))
    results = FilterAnnotations(min_gt_mask_area=300, by_box=False, by_mask=True)(scene(rectangles))
    assert results['gt_bboxes_labels'].tolist() == [0]
    assert FilterAnnotations((99, 99))(scene(rectangles)) is None
    assert len(FilterAnnotations((99, 99), keep_empty=False)(scene(rectangles))['gt_bboxes']) == 0


def test_pad():
    results = Pad(size=(100, 64), pad_val=dict(img=(1, 2, 3), masks=0))(scene([(0, 0, 5, 5)], bitmap=True))
    assert results['img'].shape == (64, 100, 3)
    assert results['img'][-1, -1].tolist() == [1, 2, 3]
    assert results['gt_masks'].masks.shape == (1, 64, 100)
    assert Pad(size=(10, 10))(scene([]))['img_shape'] == (60, 90)
    assert Pad(size_divisor=32)(scene([]))['img_shape'] == (64, 96)
    assert Pad(pad_to_square=True)(scene([]))['img_shape'] == (90, 90)


def test_pack_sends_crowds_to_the_ignored():
    results = scene([(0, 0, 9, 9), (20, 20, 40, 40), (50, 5, 60, 15)], crowds=(1,))
    results.update(flip=True, flip_direction='horizontal', scale_factor=(1.0, 1.0), img_path='a.jpg')
    packed = PackDetInputs()(results)
    sample = packed['data_samples']
    assert packed['inputs'].shape == (3, 60, 90) and packed['inputs'].dtype == torch.uint8
    assert packed['inputs'].is_contiguous()
    assert sample.gt_instances.labels.tolist() == [0, 2]
    assert sample.ignored_instances.labels.tolist() == [1]
    assert sample.ignored_instances.bboxes.tolist() == [[20, 20, 40, 40]]
    assert len(sample.gt_instances.masks) == 2 and len(sample.ignored_instances.masks) == 1
    assert sample.img_id == 1 and sample.ori_shape == (60, 90) and sample.flip_direction == 'horizontal'


def test_load_annotations():
    base = dict(bbox=[0, 0, 9, 9], bbox_label=0, ignore_flag=0)
    square = [[0, 0, 9, 0, 9, 9]]
    results = LoadAnnotations(with_mask=True)(
        dict(ori_shape=(20, 20), instances=[dict(base, mask=square), base, dict(base, mask=[[1, 2, 3, 4]])])
    )
    assert results['gt_ignore_flags'].tolist() == [False, True, True]  # nothing to learn a mask from
    assert isinstance(results['gt_masks'], PolygonMasks)
    rle = dict(size=[20, 20], counts=[5, 10, 385])
    mixed = [dict(base, mask=square), dict(base, mask=rle)]
    results = LoadAnnotations(with_mask=True)(dict(ori_shape=(20, 20), instances=mixed))
    assert isinstance(results['gt_masks'], BitmapMasks)
    assert results['gt_masks'].areas[1] == 10
    boxes_only = LoadAnnotations()(dict(instances=[base]))
    assert 'gt_masks' not in boxes_only and boxes_only['gt_ignore_flags'].tolist() == [False]
    alone = LoadAnnotations(with_mask=True)(dict(ori_shape=(20, 20), instances=[base]))
    assert alone['gt_ignore_flags'].tolist() == [True] and len(alone['gt_masks']) == 1


@pytest.mark.parametrize(
    'build, message',
    [
        (lambda: Resize(), 'scale'),
        (lambda: Resize(scale=(1, 1), scale_factor=1.0), 'scale'),
        (lambda: Resize(scale=(0, 0)), r'\(0, 0\) is not \(w, h\) in pixels'),
        (lambda: RandomFlip(0.5, 'sideways'), 'sideways'),
        (lambda: RandomFlip(), 'prob'),
        (lambda: RandomFlip([0.5], ['horizontal', 'vertical']), 'prob'),
        (lambda: RandomFlip([0.6, 0.6], ['horizontal', 'vertical']), 'sum 0 to 1'),
        (lambda: RandomResize((10, 10)), 'ratio_range'),
        (lambda: RandomResize([(1, 1), (2, 2), (3, 3)]), 'RandomChoiceResize'),
        (lambda: RandomResize((9, 9), (1, 2), resize_type='ResizeShortestEdge'), 'ResizeShortestEdge'),
        (lambda: RandomCrop((10, 10), 'square'), 'square'),
        (lambda: RandomCrop((1.5, 0.5), 'relative'), 'out of range'),
        (lambda: RandomCrop((0.5, 0.5)), 'whole pixels'),
        (lambda: RandomCrop((20, 10), 'absolute_range'), 'smallest, largest'),
        (lambda: FilterAnnotations(by_box=False), 'by_mask'),
        (lambda: Pad(), 'size_divisor'),
    ],
)
def test_wrong_settings(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# --- reading images


def test_grey_and_16_bit_images(tmp_path):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    cv2.imwrite(str(tmp_path / 'grey.png'), grey)
    cv2.imwrite(str(tmp_path / 'deep.png'), grey.astype(np.uint16) * 257)
    cv2.imwrite(str(tmp_path / 'alpha.png'), np.dstack([grey, grey, grey, grey]))
    for name in ('grey.png', 'deep.png', 'alpha.png'):
        img = LoadImageFromFile()(dict(img_path=str(tmp_path / name)))['img']
        assert img.dtype == np.uint8
        np.testing.assert_allclose(img.astype(int), np.repeat(grey[..., None], 3, axis=2), atol=1)
    results = LoadImageFromFile(to_float32=True)(dict(img_path=str(tmp_path / 'grey.png')))
    assert results['img'].dtype == np.float32


def test_cmyk_and_grey_jpeg_look_like_the_plain_one(real_data):
    folder = real_data / 'photos/edge_files'
    plain, cmyk, grey = (
        LoadImageFromFile()(dict(img_path=str(folder / f'{n}_pytorch.jpg')))['img'].astype(int)
        for n in ('rgb', 'cmyk', 'gray')
    )
    assert plain.shape == cmyk.shape == grey.shape
    assert np.abs(plain - cmyk).mean() < 6
    assert np.abs(plain.mean(axis=2) - grey.mean(axis=2)).mean() < 12
    assert (grey[..., 0] == grey[..., 2]).all()


def test_unreadable_images_name_their_path(tmp_path, real_data):
    whole = (real_data / 'photos/tv_dog1.jpg').read_bytes()
    png = (real_data / 'photos/skimage_chelsea.png').read_bytes()
    cases = {
        'empty.jpg': (b'', 'empty file'),
        'text.jpg': (b'not an image', 'damaged'),
        'cut.jpg': (whole[: len(whole) // 2], 'cut off'),
        'head.jpg': (whole[:3], 'cut off'),
        'cut.png': (png[:100], 'damaged'),
    }
    for name, (content, message) in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UserError, match=message) as error:
            LoadImageFromFile()(dict(img_path=str(path)))
        assert str(path) in str(error.value)
        assert LoadImageFromFile(ignore_empty=True)(dict(img_path=str(path))) is None
    with pytest.raises(UserError, match='no image .*gone.jpg'):
        LoadImageFromFile()(dict(img_path=str(tmp_path / 'gone.jpg')))


def test_a_jpeg_with_fill_bytes_is_whole(tmp_path):
    """Any marker may have bytes 0xFF before it (ITU-T T.81, B.1.1.2)."""
    path = str(tmp_path / 'a.jpg')
    cv2.imwrite(path, np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8))
    img = LoadImageFromFile()(dict(img_path=path))['img']
    data = (tmp_path / 'a.jpg').read_bytes()
    second = 4 + int.from_bytes(data[4:6], 'big')  # the marker behind the first segment
    (tmp_path / 'a.jpg').write_bytes(data[:second] + b'\xff\xff' + data[second:])
    np.testing.assert_array_equal(LoadImageFromFile()(dict(img_path=path))['img'], img)


def test_damaged_but_complete_jpegs_are_read_as_far_as_they_go(real_data):
    for name in ('bad_huffman.jpg', 'corrupt.jpg'):
        img = LoadImageFromFile()(dict(img_path=str(real_data / 'photos/edge_files' / name)))['img']
        assert img.ndim == 3 and img.std() > 5


def test_an_image_of_another_size_than_annotated(tmp_path):
    path = str(tmp_path / 'a.png')
    cv2.imwrite(path, np.zeros((10, 20, 3), np.uint8))
    with pytest.raises(ValueError, match=r'a.png is of size \(10, 20\).*\(20, 10\)'):
        LoadImageFromFile()(dict(img_path=path, height=20, width=10))


class ShiftedBoxes(LoadAnnotations):
    """Written as for mmdetection: overrides of its methods are called, with what they find there."""

    def _load_bboxes(self, results):
        super()._load_bboxes(results)
        results['gt_bboxes'] += 1
        results['gt_heights'] = np.array([7.0, 8.0])

    def _load_labels(self, results):
        results['gt_bboxes_labels'] = np.array([5, 6])

    def _load_masks(self, results):
        super()._load_masks(results)
        results['gt_masks'] = results['gt_masks'].flip()


class PackHeights(PackDetInputs):
    mapping_table = {**PackDetInputs.mapping_table, 'gt_heights': 'heights'}


class AlwaysDown(RandomFlip):
    def _choose_direction(self):
        return 'vertical'

    def _flip(self, results):
        super()._flip(results)
        results['flipped'] = results['flip_direction']


class Corner(RandomCrop):
    def _get_crop_size(self, image_size):
        return image_size[0] // 2, image_size[1]


def test_overrides_written_for_mmdetection_are_called():
    loaded = scene([(8, 10, 40, 34), (50, 30, 88, 58)], crowds=[1])
    results = ShiftedBoxes(with_mask=True)(loaded)
    packed = PackHeights()(results)['data_samples']
    assert packed.gt_instances.bboxes.tolist() == [[9, 11, 41, 35]] and packed.gt_instances.labels.tolist() == [5]
    assert packed.gt_instances.heights.tolist() == [7] and packed.ignored_instances.heights.tolist() == [8]
    assert packed.gt_instances.masks.boxes().tolist() == [[50, 10, 82, 34]]
    flipped = AlwaysDown(prob=0.0)(results)
    assert flipped['flipped'] == 'vertical' and flipped['gt_bboxes'][0].tolist() == [9, 25, 41, 49]
    assert Corner(crop_size=(1, 1), allow_negative_crop=True)(results)['img_shape'] == (30, 90)


@pytest.mark.parametrize('base, name, instead', [
    (LoadAnnotations, '_process_masks', '_load_masks'), (Resize, '_resize_bboxes', 'resize'),
    (RandomFlip, '_flip_on_direction', 'transform'), (RandomCrop, '_crop_data', 'transform'),
    (Pad, '_pad_masks', 'transform'), (RandomResize, '_random_scale', 'transform'),
    (RandomChoiceResize, '_random_select', 'transform'),
])  # fmt: skip
def test_overrides_that_nothing_would_call_are_refused(base, name, instead):
    with pytest.raises(UserError, match=rf'Mine.{name} would never be called: .*override {instead} instead'):
        type('Mine', (base,), {name: lambda self, results: results})
