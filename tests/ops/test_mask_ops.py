"""Mask routes against grid_sample and pycocotools."""

import math
import resource

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torch.library import opcheck

from mmdet.ops import COMPILED, mask_targets, masks_to_rle, paste_masks, rasterize_polygons
from mmdet.ops.masks import _plain_paste

compiled = pytest.mark.skipif(not COMPILED, reason='the compiled ops are missing')


def random_masks(count, height=28, width=28, rough=False):
    masks = torch.rand(count, height, width)
    return masks if rough else F.avg_pool2d(masks[None], 5, 1, 2)[0]


def random_boxes(count, height, width):
    """Boxes of all sizes; some reach over the border, some lie outside."""
    sides = torch.empty(count, 2).uniform_(-1, math.log(2.0 * max(height, width))).exp()
    centres = (torch.rand(count, 2) * 1.6 - 0.3) * torch.tensor([width, height])
    return torch.cat([centres - sides / 2, centres + sides / 2], 1)


def encode(masks):
    return [coco_mask.encode(np.asfortranarray(m)) for m in masks.cpu().numpy().astype(np.uint8)]


@pytest.mark.parametrize('block', range(5))
def test_rle_is_pycocotools_of_the_pasted_masks(device, block):
    """1,000 pairs in all, byte for byte."""
    torch.manual_seed(block)
    for case in range(50):
        height, width = torch.randint(1, 200, (2,)).tolist()
        masks = random_masks(4, *torch.randint(1, 30, (2,)).tolist(), rough=case % 3 == 0)
        boxes = random_boxes(4, height, width)
        if case % 4 == 0:
            boxes = boxes.round()
        threshold = 0.5 if case % 2 else float(torch.empty(()).uniform_(0.05, 0.95))
        pasted = paste_masks(masks.to(device), boxes.to(device), (height, width), threshold)
        runs = masks_to_rle(masks.to(device), boxes.to(device), (height, width), threshold)
        assert runs == encode(pasted), (block, case)


def test_full_and_touching_columns():
    """Masks that fill whole columns: a run passes from one column's foot to the next one's head."""
    for box in ([-50.0, -50, 150, 150], [0, 0, 64, 48], [10, -40, 20, 90], [3, 5, 40, 48]):
        masks, boxes = torch.ones(1, 14, 14), torch.tensor([box], dtype=torch.float32)
        runs = masks_to_rle(masks, boxes, (48, 64))
        assert runs == encode(paste_masks(masks, boxes, (48, 64)))
    assert runs[0]['size'] == [48, 64] and isinstance(runs[0]['counts'], bytes)


def test_paste_equals_grid_sample(device):
    torch.manual_seed(1)
    for case in range(20):
        height, width = torch.randint(1, 150, (2,)).tolist()
        masks, boxes = random_masks(6).to(device), random_boxes(6, height, width).to(device)
        pasted = paste_masks(masks, boxes, (height, width))
        assert pasted.dtype == torch.bool and pasted.shape == (6, height, width)
        surely, perhaps = (_plain_paste(masks, boxes, height, width, 0.5 + eps) for eps in (1e-4, -1e-4))
        assert not (surely & ~pasted).any() and not (pasted & ~perhaps).any(), case  # last bits may cross it
        assert (surely != perhaps).float().mean() < 0.01
        if device == 'cpu':
            assert (pasted != _plain_paste(masks.double(), boxes, height, width, 0.5)).float().mean() < 1e-5, case


def test_paste_by_hand():
    """A 1 x 1 mask over a 4-pixel box: 1 at its centre, falling to 0 one mask cell away."""
    pasted = paste_masks(torch.ones(1, 1, 1), torch.tensor([[2.0, 2, 6, 6]]), (8, 8), 0.5)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[3:5, 3:5] = True  # (1 - 1/8)^2 = 0.77
    expected[3:5, [2, 5]] = expected[[2, 5], 3:5] = True  # (1 - 1/8) (1 - 3/8) = 0.55
    assert torch.equal(pasted[0], expected)


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf, 1e30, -1e30, 3e38])
def test_wild_boxes_and_empty(device, value):
    masks = torch.ones(6, 5, 5, device=device)
    boxes = torch.tensor([[5.0, 5, 20, 20]]).repeat(6, 1)
    for i in range(4):
        boxes[i, i] = value
    boxes[4] = value
    boxes = boxes.to(device)
    pasted = paste_masks(masks, boxes, (30, 40))
    assert masks_to_rle(masks, boxes, (30, 40)) == encode(pasted)
    assert pasted[5].sum() > 200 and not pasted[4].any()
    if not math.isfinite(value):
        assert not pasted[:5].any()
    for count, shape in ((0, (30, 40)), (6, (0, 40)), (6, (30, 0))):
        assert paste_masks(masks[:count], boxes[:count], shape).shape == (count, *shape)
        assert len(masks_to_rle(masks[:count], boxes[:count], shape)) == count
    degenerate = torch.tensor([[5.0, 5, 5, 9], [9, 5, 5, 9]], device=device)
    assert not paste_masks(masks[:2], degenerate, (30, 40)).any()
    assert [r['counts'] for r in masks_to_rle(masks[:2], degenerate, (30, 40))] == [
        coco_mask.encode(np.zeros((30, 40), np.uint8, order='F'))['counts']] * 2
    noisy = torch.where(torch.rand(6, 5, 5) < 0.2, torch.tensor(value), torch.rand(6, 5, 5)).to(device)
    plain = torch.tensor([[5.0, 5, 20, 20]], device=device).repeat(6, 1)
    assert masks_to_rle(noisy, plain, (30, 40)) == encode(paste_masks(noisy, plain, (30, 40)))


def test_non_contiguous_and_half(device):
    masks, boxes = random_masks(4, 28, 56).to(device), random_boxes(4, 50, 60).to(device)
    strided, wide = masks[..., ::2], torch.stack([boxes, boxes], 2)[..., 0]
    assert torch.equal(paste_masks(strided, wide, (50, 60)), paste_masks(strided.contiguous(), boxes, (50, 60)))
    assert masks_to_rle(strided, wide, (50, 60)) == masks_to_rle(strided.contiguous(), boxes, (50, 60))
    half = strided.half()
    assert torch.equal(paste_masks(half, boxes, (50, 60)), paste_masks(half.float(), boxes, (50, 60)))


def slow_targets(polygons, boxes, size):
    """The plain route: shift, scale, pycocotools' frPyObjects, merge, decode."""
    result = np.zeros((len(boxes), size, size), np.float32)
    for i, (parts, box) in enumerate(zip(polygons, boxes.double().numpy())):
        scale = size / np.maximum(box[2:] - box[:2], 1)
        moved = [((np.reshape(p, (-1, 2)) - box[:2]) * scale).reshape(-1).tolist() for p in parts]
        result[i] = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(moved, size, size)))
    return torch.from_numpy(result)


def random_polygons(rng, side):
    def polygon():
        count = 2 * rng.integers(3, 14)
        return (rng.integers(-5, side, count).astype(float) if rng.random() < 0.5
                else rng.uniform(-0.3 * side, 1.3 * side, count))
    return [polygon() for _ in range(rng.integers(1, 4))]


@pytest.mark.parametrize('size', [7, 14, 28, 56])
def test_targets_equal_the_plain_route(size):
    rng = np.random.default_rng(size)
    torch.manual_seed(size)
    polygons = [random_polygons(rng, 80) for _ in range(150)]
    boxes = random_boxes(150, 80, 80)
    boxes[::10, 2:] = boxes[::10, :2] + 0.3  # thinner than a pixel
    targets = mask_targets(polygons, boxes, size)
    assert targets.dtype == torch.float32
    assert torch.equal(targets, slow_targets(polygons, boxes, size))
    indices = torch.randint(0, 150, (150,))
    shared = mask_targets(polygons, boxes, size, indices)
    assert torch.equal(shared, slow_targets([polygons[i] for i in indices], boxes, size))


def test_targets_from_real_annotations(real_data):
    import json
    data = json.loads((real_data / 'coco_dev' / 'annotations' / 'instances_val2017.json').read_text())
    found = [a for a in data['annotations'] if isinstance(a['segmentation'], list)]
    assert len(found) > 500
    polygons = [a['segmentation'] for a in found]
    boxes = torch.tensor([a['bbox'] for a in found])
    boxes[:, 2:] += boxes[:, :2]
    boxes += torch.randn_like(boxes) * 4
    boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    assert torch.equal(mask_targets(polygons, boxes, 28), slow_targets(polygons, boxes, 28))
    for a in found[:100]:
        picture = next(i for i in data['images'] if i['id'] == a['image_id'])
        height, width = picture['height'], picture['width']
        expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(a['segmentation'], height, width)))
        assert np.array_equal(rasterize_polygons([a['segmentation']], height, width)[0].numpy(), expected)


def test_rasterize_equals_pycocotools():
    rng = np.random.default_rng(0)
    for _ in range(200):
        height, width = rng.integers(1, 90, 2).tolist()
        polygons = [random_polygons(rng, 70) for _ in range(3)]
        expected = [coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([p.tolist() for p in parts], height, width)))
                    for parts in polygons]
        assert np.array_equal(rasterize_polygons(polygons, height, width).numpy(), np.stack(expected))


@pytest.mark.parametrize('route', [pytest.param('compiled', marks=compiled), 'plain'])
def test_wild_and_empty_polygons(route, monkeypatch):
    monkeypatch.setattr('mmdet.ops.masks.COMPILED', route == 'compiled')
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    square = [[1.0, 1, 9, 1, 9, 9, 1, 9]]
    assert mask_targets([], torch.zeros(0, 4), 28).shape == (0, 28, 28)
    assert not mask_targets([[]], torch.tensor([[0.0, 0, 10, 10]]), 28).any()
    assert rasterize_polygons([square], 0, 5).shape == (1, 0, 5)
    for value in (math.nan, math.inf, -math.inf, 1e30, -1e30):
        boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(5, 1)
        for i in range(4):
            boxes[i, i] = value
        targets = mask_targets([square] * 5, boxes, 28)
        assert targets[4].mean() > 0.5 and set(targets.unique().tolist()) <= {0.0, 1.0}
        wild = mask_targets([[[value, 1, 9, 1, 9, 9]]], boxes[4:], 28)
        assert set(wild.unique().tolist()) <= {0.0, 1.0}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1e6  # kilobytes


@compiled
def test_the_plain_route_is_the_compiled_one(monkeypatch):
    """Also with corners far away, and with more edges than are drawn at a time."""
    rng = np.random.default_rng(0)
    polygons = [random_polygons(rng, 70) for _ in range(300)] + [[rng.uniform(-9, 80, 1200)]]
    for parts in polygons[:200]:
        far = rng.random(len(parts[0])) < 0.2
        parts[0][far] *= 10.0 ** rng.integers(2, 31, far.sum())
    drawn = rasterize_polygons(polygons, 61, 83)
    monkeypatch.setattr('mmdet.ops.masks.COMPILED', False)
    assert torch.equal(rasterize_polygons(polygons, 61, 83), drawn)


@pytest.mark.parametrize('case, message', [
    (lambda m, b: paste_masks(m[0], b, (9, 9)), r'masks \(D, h, w\)'),
    (lambda m, b: paste_masks(m, b[:1], (9, 9)), r'boxes \(D, 4\)'),
    (lambda m, b: paste_masks(m[..., :0], b, (9, 9)), 'no cells'),
    (lambda m, b: paste_masks(m > 0, b, (9, 9)), 'floating-point probabilities'),
    (lambda m, b: paste_masks(m, b, (9, 9), 0.0), 'threshold must be above 0'),
    (lambda m, b: paste_masks(m, b.to('meta'), (9, 9)), 'boxes on meta'),
    (lambda m, b: masks_to_rle(m, b, (-1, 9)), 'image_shape'),
    (lambda m, b: mask_targets([[[0, 0, 1, 1]]] * 2, b, 28), 'three points or more, got 4'),
    (lambda m, b: mask_targets([[[0, 0, 1, 1, 2, 2, 3]]] * 2, b, 28), 'got 7'),
    (lambda m, b: mask_targets([[]], b, 28), '2 boxes but polygons of 1'),
    (lambda m, b: mask_targets([[]], b[:, :3], 28), r'boxes must be \(R, 4\)'),
])
def test_wrong_input_has_one_clear_message(case, message):
    with pytest.raises(ValueError, match=message):
        case(torch.zeros(2, 3, 3), torch.zeros(2, 4))


@compiled
def test_an_index_beyond_the_instances():
    with pytest.raises(IndexError, match='index 1 of 1'):
        mask_targets([[]], torch.zeros(1, 4), 28, [1])


@compiled
def test_opcheck(device):
    masks, boxes = random_masks(3).to(device), random_boxes(3, 40, 50).to(device)
    opcheck(torch.ops.mmdet.paste_masks, (masks, boxes, 40, 50, 0.5))
    if device == 'cpu':
        opcheck(torch.ops.mmdet.masks_to_rle, (masks, boxes, 40, 50, 0.5))
        points = torch.rand(7, 2, dtype=torch.float64) * 30
        opcheck(torch.ops.mmdet.rasterize_polygons, (points, torch.tensor([0, 3, 7]), torch.tensor([0, 1, 2]),
                                                     torch.tensor([1, 0, 1]), boxes, 28, 28))


@compiled
def test_image_past_32_bits_is_a_clear_error():
    with pytest.raises(ValueError, match='32 bits'):
        masks_to_rle(torch.ones(1, 2, 2), torch.ones(1, 4), (70000, 70000))
