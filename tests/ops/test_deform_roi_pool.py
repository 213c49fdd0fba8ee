"""Deformable RoI pooling against a slow loop, RoIAlign and numerical gradients."""

import math

import pytest
import torch
import torchvision

from mmdet.ops import roi_align
from mmdet.ops.deform_roi_pool import deform_roi_pool

ROIS = torch.tensor(
    [[0, 1.3, 2.1, 14.6, 9.2], [1, 3.1, 0.4, 8.3, 15.7], [1, -6.0, 5.2, 3.4, 30.1], [0, 2.2, 2.3, 3.1, 3.4]]
).double()


def maps(channels=3):
    torch.manual_seed(0)
    return torch.randn(2, channels, 7, 9, dtype=torch.float64)


def value_at(feature, y, x):
    """Bilinear value (C,) of a map (C, H, W), its border held for one cell and 0 further out."""
    height, width = feature.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return feature.new_zeros(len(feature))
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = min(int(y), height - 2), min(int(x), width - 2)
    dy, dx = y - top, x - left
    corners = feature[:, top : top + 2, left : left + 2]
    return corners[:, 0, 0] * (1 - dy) * (1 - dx) + corners[:, 0, 1] * (1 - dy) * dx + corners[:, 1, 0] * dy * (
        1 - dx
    ) + corners[:, 1, 1] * dy * dx


def slow(features, rois, offset, size, scale, ratio, gamma):
    height, width = size
    out = features.new_zeros(len(rois), features.shape[1], height, width)
    for k, (image, *box) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (side * scale - 0.5 for side in box)
        down = ratio or math.ceil((y2 - y1) / height)
        across = ratio or math.ceil((x2 - x1) / width)
        for i in range(height):
            for j in range(width):
                dx, dy = (0, 0) if offset is None else offset[k, :, i, j].tolist()
                for sy in range(down):
                    for sx in range(across):
                        y = y1 + gamma * dy * (y2 - y1) + (i + (sy + 0.5) / down) * (y2 - y1) / height
                        x = x1 + gamma * dx * (x2 - x1) + (j + (sx + 0.5) / across) * (x2 - x1) / width
                        out[k, :, i, j] += value_at(features[int(image)], y, x) / (down * across)
    return out


@pytest.mark.parametrize('ratio', [0, 1, 3])
@pytest.mark.parametrize('gamma', [0.1, 0.4])
def test_equals_a_slow_loop(ratio, gamma):
    features, offset = maps(), torch.randn(len(ROIS), 2, 2, 3, dtype=torch.float64)
    found = deform_roi_pool(features, ROIS, offset, (2, 3), 0.5, ratio, gamma)
    torch.testing.assert_close(found, slow(features, ROIS, offset, (2, 3), 0.5, ratio, gamma))
    assert not torch.allclose(found, deform_roi_pool(features, ROIS, None, (2, 3), 0.5, ratio), atol=0.1)


def test_a_sample_a_cell_outside_the_map_still_reads_its_border():
    """Samples at -1 and at the map's width 9 and height 7, in cells; a little further out they read nothing."""
    features = maps().abs() + 1
    sides = torch.tensor([[-1, 3, 0, 4], [9, 3, 10, 4], [3, -1, 4, 0], [3, 7, 4, 8]]).double()
    for beyond, read in (0, True), (1e-6, False):
        out = torch.tensor([[-1, 0], [1, 0], [0, -1], [0, 1]]).repeat(1, 2) * beyond
        boxes = torch.cat([torch.zeros(4, 1), sides + out], dim=1)
        found = deform_roi_pool(features, boxes, None, 1, 1.0, 1)
        torch.testing.assert_close(found, slow(features, boxes, None, (1, 1), 1.0, 1, 0))
        torch.testing.assert_close(found, torchvision.ops.roi_align(features, boxes, 1, 1.0, 1, aligned=True))
        assert (found > 0).all() == read == found.any()


def test_gamma_is_a_tenth():
    features, offset = maps(), torch.randn(len(ROIS), 2, 2, 2, dtype=torch.float64)
    found = deform_roi_pool(features, ROIS, offset, 2, 0.5)
    torch.testing.assert_close(found, slow(features, ROIS, offset, (2, 2), 0.5, 0, 0.1))


@pytest.mark.parametrize('ratio', [0, 2])
def test_without_offsets_it_is_roi_align(ratio):
    expected = roi_align(maps(), ROIS, 3, 0.5, ratio, aligned=True)
    for offset in (None, torch.zeros(len(ROIS), 2, 3, 3)):
        torch.testing.assert_close(deform_roi_pool(maps(), ROIS, offset, 3, 0.5, ratio), expected)


def test_a_bin_moves_by_sides_of_its_roi_first_in_x():
    ramp = torch.arange(40.0).expand(1, 1, 30, 40)
    ramps = torch.cat([ramp, torch.arange(30.0)[:, None].expand(1, 1, 30, 40)], dim=1)  # value x, value y
    rois, offset = torch.tensor([[0, 4.0, 6.0, 12.0, 10.0]]), torch.zeros(1, 2, 2, 2)
    offset[0, :, 0, 1] = torch.tensor([2.0, 5.0])
    moved = deform_roi_pool(ramps, rois, offset, 2) - deform_roi_pool(ramps, rois, None, 2)
    expected = torch.zeros(1, 2, 2, 2)
    expected[0, :, 0, 1] = torch.tensor([0.1 * 2 * 8, 0.1 * 5 * 4])
    torch.testing.assert_close(moved, expected)


def test_gradients_are_numerical_ones():
    features = maps(2).requires_grad_()
    offset = (torch.rand(len(ROIS), 2, 2, 2, dtype=torch.float64) + 0.1).requires_grad_()
    inputs = features, offset
    assert torch.autograd.gradcheck(lambda f, o: deform_roi_pool(f, ROIS, o, 2, 0.5), inputs, fast_mode=True)


def test_no_rois_give_connected_zeros():
    features, offset = maps().requires_grad_(), torch.zeros(0, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    out = deform_roi_pool(features, ROIS[:0], offset, 2)
    assert out.shape == (0, 3, 2, 2)
    out.sum().backward()
    assert features.grad.eq(0).all() and offset.grad is not None


def test_half_precision_is_pooled_in_float32():
    features = maps().bfloat16()
    found = deform_roi_pool(features, ROIS.float(), None, 2, 0.5)
    assert found.dtype == torch.bfloat16
    expected = deform_roi_pool(features.float(), ROIS.float(), None, 2, 0.5)
    torch.testing.assert_close(found, expected.bfloat16(), rtol=0, atol=0)
