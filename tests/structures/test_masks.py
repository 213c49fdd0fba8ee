import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.structures import InstanceData
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from mmdet.ops import COMPILED
from mmdet.structures import BitmapMasks, PolygonMasks, masks_from_coco
from mmdet.structures.masks import compressed_rle, rle_areas, rle_from_coco

HEIGHT, WIDTH = 48, 64


def simple_polygon(rng, height=HEIGHT, width=WIDTH, vertices=None):
    """A polygon that does not cross itself: vertices by angle around a centre."""
    vertices = vertices or int(rng.integers(3, 12))
    angle = (np.arange(vertices) + rng.uniform(0, 0.8, vertices)) * 2 * np.pi / vertices
    radius = rng.uniform(0.15, 0.5, vertices) * min(height, width)
    centre = rng.uniform(0.3, 0.7, 2) * (width, height)
    return (centre + np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius[:, None]).ravel()


def random_masks(seed, count=3):
    rng = np.random.default_rng(seed)
    return PolygonMasks([[simple_polygon(rng)] for _ in range(count)], HEIGHT, WIDTH)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 1.0


@pytest.mark.parametrize('kind', ['polygon', 'bitmap'])
def test_no_instances(kind):
    masks = PolygonMasks([], 5, 7) if kind == 'polygon' else BitmapMasks(np.zeros((0, 5, 7)), 5, 7)
    changes = (masks.resize((10, 14)), masks.flip(), masks.crop((1, 1, 4, 3)), masks.pad((8, 8)), masks[:0])
    for changed in changes:
        assert len(changed) == 0
        assert changed.boxes().shape == (0, 4)
        assert changed.areas.shape == (0,)
    assert (masks.resize((10, 14)).height, masks.resize((10, 14)).width) == (10, 14)
    targets = masks.crop_and_resize(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), 28)
    assert targets.shape == (0, 28, 28)


def test_an_instance_without_polygons_is_empty():
    masks = PolygonMasks([[], [[0, 0, 4, 0, 4, 4]]], 8, 8)
    assert masks.areas.tolist() == [0, 8]
    assert masks.boxes().tolist() == [[0, 0, 0, 0], [0, 0, 4, 4]]
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4]])
    targets = masks.crop_and_resize(boxes, torch.tensor([0, 1]), 4)
    assert targets[0].sum() == 0
    assert targets[1].sum() > 0
    assert masks.to_bitmap().areas[0] == 0


@given(seed=st.integers(0, 10_000), cut=st.floats(0.1, 0.9), axis=st.integers(0, 1))
@settings(max_examples=60, deadline=None)
def test_the_parts_of_a_cut_have_the_area_of_the_whole(seed, cut, axis):
    """Exact, also for concave polygons and for windows reaching beyond the image."""
    masks = random_masks(seed)
    x, y = (round(cut * WIDTH), HEIGHT + 40) if axis else (WIDTH + 40, round(cut * HEIGHT))
    first = masks.crop((-40, -40, x, y))
    rest = masks.crop((x, -40, WIDTH + 40, y) if axis else (-40, y, x, HEIGHT + 40))
    np.testing.assert_allclose(first.areas + rest.areas, masks.areas, rtol=1e-9)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_a_cropped_polygon_covers_what_a_cropped_bitmap_covers(seed):
    masks = random_masks(seed)
    rng = np.random.default_rng(seed)
    x1, y1 = int(rng.integers(0, WIDTH - 8)), int(rng.integers(0, HEIGHT - 8))
    window = (x1, y1, int(rng.integers(x1 + 4, WIDTH + 1)), int(rng.integers(y1 + 4, HEIGHT + 1)))
    cropped = masks.crop(window)
    by_polygon, by_bitmap = cropped.to_bitmap(), masks.to_bitmap().crop(window)
    assert by_polygon.masks.shape == by_bitmap.masks.shape
    # the two rasterise the same outline; cells on it may differ
    for polygons, a, b in zip(cropped.polygons, by_polygon.masks, by_bitmap.masks):
        points = np.concatenate([*polygons, [0, 0]]).reshape(-1, 2)[:-1]
        outline = np.abs(points - np.roll(points, 1, axis=0)).sum()
        assert np.count_nonzero(a != b) <= 0.2 * outline + 2


@given(seed=st.integers(0, 10_000), scale=st.tuples(st.integers(20, 200), st.integers(20, 200)))
@settings(max_examples=40, deadline=None)
def test_resizing_scales_areas_and_boxes(seed, scale):
    masks = random_masks(seed)
    resized = masks.resize(scale)
    in_y, in_x = scale[0] / HEIGHT, scale[1] / WIDTH
    np.testing.assert_allclose(resized.areas, masks.areas * in_x * in_y, rtol=1e-9)
    expected = masks.boxes() * [in_x, in_y, in_x, in_y]
    np.testing.assert_allclose(resized.boxes(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize('direction', ['horizontal', 'vertical', 'diagonal'])
def test_flip(direction):
    bitmap = random_masks(0).to_bitmap()
    axes = dict(horizontal=2, vertical=1, diagonal=(1, 2))[direction]
    np.testing.assert_array_equal(bitmap.flip(direction).masks, np.flip(bitmap.masks, axes))

    polygons = random_masks(0)
    twice = polygons.flip(direction).flip(direction)
    for back, there in zip(twice.polygons, polygons.polygons):
        np.testing.assert_allclose(back[0], there[0], rtol=0, atol=1e-9)
    for a, b in zip(polygons.flip(direction).to_bitmap().masks, bitmap.flip(direction).masks):
        assert iou(a, b) > 0.9


def test_nothing_is_changed_in_place():
    polygons, bitmap = random_masks(1), random_masks(1).to_bitmap()
    points, pixels = [p[0].copy() for p in polygons.polygons], bitmap.masks.copy()
    for masks in (polygons, bitmap):
        masks.flip('diagonal').resize((30, 30)).crop((3, 3, 20, 20)).pad((99, 99))
    for old, new in zip(points, polygons.polygons):
        np.testing.assert_array_equal(old, new[0])
    np.testing.assert_array_equal(pixels, bitmap.masks)


def test_bitmap_resize_takes_the_value_under_the_centre():
    mask = np.zeros((1, 4, 4), dtype=np.uint8)
    mask[0, :, 2:] = 1
    masks = BitmapMasks(mask, 4, 4)
    assert masks.resize((8, 8)).masks[0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert masks.resize((4, 6)).masks[0, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert masks.resize((2, 2)).masks[0, 0].tolist() == [0, 1]
    # three columns onto two: the centres 0.75 and 2.25 lie in columns 0 and 2
    assert BitmapMasks([[[1, 0, 0]]], 1, 3).resize((1, 2)).masks[0, 0].tolist() == [1, 0]
    assert BitmapMasks([[[0, 0, 1]]], 1, 3).resize((1, 2)).masks[0, 0].tolist() == [0, 1]


def test_bitmap_boxes_and_areas():
    mask = np.zeros((2, 6, 8), dtype=bool)
    mask[0, 2:4, 1:6] = True
    masks = BitmapMasks(mask, 6, 8)
    assert masks.boxes().tolist() == [[1, 2, 6, 4], [0, 0, 0, 0]]
    assert masks.areas.tolist() == [10, 0]


@pytest.mark.parametrize('kind', ['polygon', 'bitmap'])
def test_targets_of_a_rectangle(device, kind):
    masks = PolygonMasks([[[0, 0, 1, 0, 1, 1]], [[8, 4, 24, 4, 24, 20, 8, 20]]], 32, 32)
    masks = masks if kind == 'polygon' else masks.to_bitmap()
    boxes = torch.tensor([[8.0, 4, 24, 20], [0, 4, 16, 20], [8, 12, 24, 28], [25, 21, 30, 30]], device=device)
    targets = masks.crop_and_resize(boxes, torch.ones(4, dtype=torch.long, device=device), 16)
    assert targets.dtype == torch.float32
    assert targets.device.type == device
    sent = masks.crop_and_resize(boxes.cpu(), torch.ones(4, dtype=torch.long), 16, boxes.device)
    assert sent.device == targets.device and torch.equal(sent, targets)
    none = masks.crop_and_resize(boxes[:0].cpu(), torch.zeros(0, dtype=torch.long), 16, boxes.device)
    assert none.device == targets.device and none.dtype == torch.float32 and none.shape == (0, 16, 16)
    assert targets[0].eq(1).all()
    assert targets[1, :, :8].eq(0).all() and targets[1, :, 8:].eq(1).all()
    assert targets[2, :8].eq(1).all() and targets[2, 8:].eq(0).all()
    assert targets[3].eq(0).all()


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_targets_equal_the_polygon_rasterised_in_the_frame_of_the_box(seed):
    masks = random_masks(seed, count=2)
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 30, (5, 2))
    boxes = torch.from_numpy(np.concatenate([low, low + rng.uniform(2, 30, (5, 2))], axis=1)).float()
    indices = torch.from_numpy(rng.integers(0, 2, 5))
    targets = masks.crop_and_resize(boxes, indices, 14)
    for target, box, i in zip(targets, boxes.double().numpy(), indices):
        points = (masks.polygons[i][0].reshape(-1, 2) - box[:2]) * 14 / (box[2:] - box[:2])
        expected = coco_mask.decode(coco_mask.frPyObjects([points.ravel().tolist()], 14, 14))[..., 0]
        np.testing.assert_array_equal(target.numpy(), expected)


def test_a_box_without_width_gives_a_target():
    targets = random_masks(0).crop_and_resize(torch.tensor([[5.0, 5, 5, 5]]), torch.tensor([0]), 28)
    assert targets.isfinite().all()


@pytest.mark.parametrize(
    'index, expected',
    [
        (0, [0]),
        (-1, [2]),
        (slice(1, 3), [1, 2]),
        ([0, 2], [0, 2]),
        ([], []),
        (np.array([True, False, True]), [0, 2]),
        (torch.tensor([2, 0]), [2, 0]),
        (torch.tensor([False, True, True]), [1, 2]),
        (torch.tensor([False, False, False]), []),
    ],
)
def test_indexing(index, expected):
    polygons = random_masks(2)
    bitmap = polygons.to_bitmap()
    assert type(polygons[index]) is PolygonMasks
    assert type(bitmap[index]) is BitmapMasks
    np.testing.assert_array_equal(bitmap[index].masks, bitmap.masks[expected])
    np.testing.assert_array_equal(polygons[index].areas, polygons.areas[expected])


@pytest.mark.parametrize('kind', ['polygon', 'bitmap'])
def test_inside_instance_data(kind):
    masks = random_masks(3) if kind == 'polygon' else random_masks(3).to_bitmap()
    data = InstanceData(labels=torch.tensor([5, 6, 7]), masks=masks)
    chosen = data[torch.tensor([True, False, True])]
    assert len(chosen.masks) == 2
    np.testing.assert_array_equal(chosen.masks.areas, masks.areas[[0, 2]])
    assert len(InstanceData.cat([data, chosen]).masks) == 5
    with pytest.raises(ValueError, match=r'sizes \(h, w\)'):
        type(masks).cat([masks, masks.resize((10, 10))])


def test_coco_segmentations():
    square = [1, 1, 5, 1, 5, 4, 1, 4]
    bitmap = np.zeros((6, 8), dtype=np.uint8)
    bitmap[1:4, 1:5] = 1
    packed = coco_mask.encode(np.asfortranarray(bitmap))
    text = dict(packed, counts=packed['counts'].decode())
    listed = dict(size=[6, 8], counts=[7, 3, 3, 3, 3, 3, 3, 3, 20])

    polygons = masks_from_coco([[square], [square, square], None, [[1, 2, 3, 4]]], 6, 8)
    assert type(polygons) is PolygonMasks
    assert polygons.areas.tolist() == [12, 24, 0, 0]

    mixed = masks_from_coco([[square], packed, text, listed, None], 6, 8)
    assert type(mixed) is BitmapMasks
    for mask in mixed.masks[:4]:
        np.testing.assert_array_equal(mask, bitmap)
    assert mixed.masks[4].sum() == 0

    assert type(masks_from_coco([[square]], 6, 8, bitmap=True)) is BitmapMasks
    with pytest.raises(ValueError, match=r'RLE mask is of size \(6, 8\)'):
        masks_from_coco([packed], 8, 6)
    with pytest.raises(ValueError, match='counts of an RLE mask sum to 10, its image has 48 pixels'):
        masks_from_coco([dict(size=[6, 8], counts=[7, 3])], 6, 8)


def test_a_flat_polygon():
    """As VIA writes it, without the list around."""
    flat = [1, 1, 5, 1, 5, 4, 1, 4]
    assert masks_from_coco([flat], 6, 8).areas.tolist() == [12]
    assert masks_from_coco([flat[:4]], 6, 8).polygons == [[]]
    assert rle_areas([rle_from_coco(flat, 6, 8)]).tolist() == [12]


@pytest.mark.parametrize('wrong', [[1, 2, 3, 4, 5, '6'], [[[1, 2], [3, 4], [5, 6]]], [[1, 2, float('nan'), 4, 5, 6]],
                                   [['a', 2, 3, 4, 5, 6]], 5, 'RLE',
                                   [[True, 2, 3, 4, 5, 6]]])  # fmt: skip
def test_segmentations_of_no_known_form(wrong):
    with pytest.raises(ValueError, match=r'a segmentation is a list of polygons \[\[x1, y1, x2, y2, ...\], ...\] or'):
        masks_from_coco([None, wrong], 6, 8)


@pytest.mark.parametrize('wrong', [dict(size=[6, 8]), dict(counts=[48]), dict(size=48, counts=[48]),
                                   dict(size=[6, 8], counts=48), dict(size=[6, 8], counts=['7', 41]),
                                   dict(size=[6, 8], counts=[True, 47]),
                                   dict(size=[6, 8], counts=[7.5, 40.5])])  # fmt: skip
def test_run_lengths_of_no_known_form(wrong):
    for read in (lambda: masks_from_coco([None, wrong], 6, 8), lambda: rle_from_coco(wrong, 6, 8)):
        with pytest.raises(ValueError, match=r'an RLE mask is dict\(size=\[h, w\], counts=whole numbers or'):
            read()


def counts_of(data):
    """COCO's compressed counts, read as its format says; None where they are not whole."""
    counts, position = [], 0
    while position < len(data):
        value, shift, more = 0, 0, True
        while more:
            if position == len(data) or not 0 <= data[position] - 48 < 64:
                return None
            group = data[position] - 48
            value |= (group & 31) << shift
            position, shift, more = position + 1, shift + 5, group & 32
        value -= (group & 16) << shift - 4
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
    return counts


def test_run_lengths_are_read_whole():
    """Areas of whole masks; of damaged ones those alone that still are whole are taken, with the right area."""
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        height, width = (int(side) for side in rng.integers(1, 70, 2))
        masks = [rng.random((height, width)) < share for share in rng.choice([0, 0.01, 0.5, 0.97, 1], 5)]
        rles = [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
        assert rle_areas(rles).tolist() == [mask.sum() for mask in masks]
        data = bytearray(rles[2]['counts'])
        for position in rng.integers(len(data), size=rng.integers(1, 4)):
            data[position] = rng.integers(40, 120)
        rles[2]['counts'] = bytes(data[:len(data) - rng.integers(2)])
        counts = counts_of(rles[2]['counts'])
        if counts and min(counts) >= 0 and sum(counts) == height * width:
            assert rle_areas(rles)[2] == sum(counts[1::2]) == coco_mask.decode(rles[2]).sum()
        else:
            refused += 1
            for read, arguments in ((rle_areas, [rles]), (masks_from_coco, [rles[2:3], height, width]),
                                    (rle_from_coco, [rles[2], height, width])):  # fmt: skip
                with pytest.raises(ValueError, match='the counts of an RLE mask'):
                    read(*arguments)
    assert 300 < refused < 400
    assert len(rle_areas([])) == 0


def test_one_mask_of_any_segmentation(real_data):
    """Equal to pycocotools, which is given no polygon that is none."""
    coco = COCO(str(real_data / 'coco_dev/annotations/instances_val2017.json'))
    for annotation in coco.dataset['annotations'][::7]:
        image = coco.imgs[annotation['image_id']]
        segmentation, size = annotation['segmentation'], (image['height'], image['width'])
        if isinstance(segmentation, list):
            segmentation = [[1, 2, 3, 4], *segmentation, []]
        assert rle_from_coco(segmentation, *size) == coco.annToRLE(annotation)
    assert [rle_from_coco(s, 6, 8) for s in (None, [], [[]], [[10, 10]], [[1, 2, 3, 4]])] == [None] * 5
    for counts in ([7, 41], [7.0, 41.0]):
        assert compressed_rle(dict(size=(6, 8), counts=counts), 6, 8)['counts'] == b'7Y1'


@pytest.mark.skipif(not COMPILED, reason='needs the compiled ops')
def test_a_vertex_far_away_takes_no_memory():
    polygon = [[1, 1, 1e30, 1, 1e30, 4, 1, 4]]
    expected = np.zeros((6, 8), dtype=np.uint8)
    expected[1:4, 1:] = 1
    np.testing.assert_array_equal(coco_mask.decode(rle_from_coco(polygon, 6, 8)), expected)


@pytest.mark.parametrize(
    'call, message',
    [
        (lambda m: m.flip('left'), "'left'"),
        (lambda m: m.crop((5, 5, 5, 9)), 'is empty'),
        (lambda m: m.to_bitmap().crop((0, 0, WIDTH + 1, 9)), 'leaves the image'),
        (lambda m: m.pad((99, 99), value=1), 'poly2mask=True'),
    ],
)
def test_wrong_use(call, message):
    with pytest.raises(ValueError, match=message):
        call(random_masks(0))


def test_polygons_and_bitmaps_of_real_images_agree(real_data):
    """After resizing, flipping and cropping, and as mask targets."""
    coco = COCO(str(real_data / 'coco_dev/annotations/instances_val2017.json'))
    ious, target_ious = [], []
    for image in coco.dataset['images'][:40]:
        found = [a for a in coco.imgToAnns[image['id']] if not a['iscrowd'] and a['area'] > 2000]
        if not found:
            continue
        height, width = image['height'], image['width']
        polygons = masks_from_coco([a['segmentation'] for a in found], height, width)
        bitmaps = polygons.to_bitmap()
        for got, annotation in zip(bitmaps.masks, found):
            np.testing.assert_array_equal(got, coco.annToMask(annotation))

        def moved(masks, shape=(height * 3 // 2, width * 3 // 2), window=(11, 7, width, height)):
            return masks.resize(shape).flip('horizontal').crop(window)

        ious += map(iou, moved(polygons).to_bitmap().masks, moved(bitmaps).masks)
        boxes, indices = torch.from_numpy(polygons.boxes()), torch.arange(len(found))
        a = polygons.crop_and_resize(boxes, indices, 28).bool().numpy()
        target_ious += map(iou, a, bitmaps.crop_and_resize(boxes, indices, 28).bool().numpy())
    assert len(target_ious) > 40
    assert np.median(ious) > 0.97 and np.percentile(ious, 5) > 0.85
    assert np.median(target_ious) > 0.97 and np.percentile(target_ious, 5) > 0.9
