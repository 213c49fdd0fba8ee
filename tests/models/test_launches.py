"""The parts between the convolutions that run without waiting for a GPU (test_other_device.py counts the waits)."""

import pytest
import torch

from mmdet.models.dense_heads.common import flatten_levels, sample_anchors
from mmdet.models.task_modules import DeltaXYWHBBoxCoder, MaxIoUAssigner, RandomSampler
from mmdet.models.task_modules.protocols import IGNORED, NEGATIVE
from mmdet.structures import Target
from mmdet.structures.boxes import scale_boxes, unscale_boxes


@pytest.mark.parametrize('border', [-1, 0, 6])
@pytest.mark.parametrize('pad_shape', [None, (64, 96)])
def test_anchors_left_out_take_no_part(border, pad_shape):
    """As if they were not there, also for the ground truth whose best anchor they would be."""
    generator = torch.Generator().manual_seed(0)
    centre = torch.rand(400, 2, generator=generator) * 140 - 10
    half = torch.rand(400, 2, generator=generator) * 30 + 2
    anchors = torch.cat([centre - half, centre + half], 1)
    boxes = torch.tensor([[60.0, 30, 90, 60], [80, 50, 96, 64], [5, 5, 30, 40]])
    ignored = torch.tensor([[0.0, 0, 20, 20]])
    target = Target(boxes, torch.zeros(3, dtype=torch.int64), None, ignored, (60, 90), pad_shape)
    assigner = MaxIoUAssigner(0.6, 0.3, min_pos_iou=0.0, ignore_iof_thr=0.5)
    inside = torch.ones(400, dtype=torch.bool)
    if pad_shape is not None:
        inside &= (anchors.view(-1, 2, 2).mean(1) < torch.tensor([96.0, 64]) - 0.5).all(1)
    if border >= 0:
        inside &= (anchors[:, :2] >= -border).all(1)
        inside &= (anchors[:, 2:] < torch.tensor([90.0, 60]) + border).all(1)
    index = inside.nonzero().squeeze(1)
    assert (len(index) == 400) == (pad_shape is None and border < 0)
    matched, _ = assigner.assign(anchors[index], boxes, ignored)
    positive, negative, gt_index = sample_anchors(anchors, target, assigner, RandomSampler(10**6, 1.0), border)
    assert torch.equal(positive, index[matched >= 0]) and torch.equal(gt_index, matched[matched >= 0])
    assert torch.equal(negative, index[matched == NEGATIVE])
    assert len(gt_index.unique()) >= 2 and (matched == IGNORED).any()


def test_an_image_without_anchors_inside_is_named():
    anchors = torch.tensor([[0.0, 0, 30, 30], [10, 10, 50, 50]])
    target = Target(anchors[:1] / 4, torch.zeros(1, dtype=torch.int64), None, torch.zeros(0, 4), (20, 12))
    for low_quality in (False, True):
        assigner = MaxIoUAssigner(0.6, 0.3, min_pos_iou=0.0, match_low_quality=low_quality)
        with pytest.raises(ValueError, match='no anchor lies inside an image of 20 x 12 pixels with allowed_border=0'):
            sample_anchors(anchors, target, assigner, RandomSampler(8, 0.5), 0)
        assert len(torch.cat(sample_anchors(anchors, target, assigner, RandomSampler(8, 0.5), -1)[:2])) == 2


def test_flattened_levels_are_ordered_by_position_and_anchor():
    maps = [torch.arange(2 * 6 * 4 * 5).float().reshape(2, 6, 4, 5), torch.rand(2, 6, 2, 3)]
    flat = flatten_levels(maps, 3)
    assert flat.shape == (2, (20 + 6) * 2, 3)
    for level, start in zip(maps, (0, 40)):
        for y, x, anchor in ((0, 0, 1), (1, 2, 0)):
            row = start + (y * level.shape[3] + x) * 2 + anchor
            assert torch.equal(flat[1, row], level[1, anchor * 3 : anchor * 3 + 3, y, x])
    last = [m.contiguous(memory_format=torch.channels_last) for m in maps]
    assert torch.equal(flatten_levels(last, 3), flat)


def test_scaling_and_back():
    boxes = torch.tensor([[1.0, 2, 3, 4]])
    assert scale_boxes(boxes, (2.0, 10.0)).tolist() == [[2, 20, 6, 40]]
    torch.testing.assert_close(unscale_boxes(scale_boxes(boxes, (1.3, 0.7)), (1.3, 0.7)), boxes)
    assert scale_boxes(torch.zeros(0, 4), (2.0, 2.0)).shape == (0, 4)


def test_coder_used_in_inference_first_trains_afterwards():
    coder = DeltaXYWHBBoxCoder(target_stds=(0.1, 0.1, 0.2, 0.2))
    boxes, deltas = torch.tensor([[0.0, 0, 10, 10]]), torch.zeros(1, 4)
    with torch.inference_mode():
        coder.decode(boxes, deltas)
    deltas = deltas.clone().requires_grad_()
    coder.decode(boxes, deltas).sum().backward()
    torch.testing.assert_close(deltas.grad, torch.tensor([[2.0, 2.0, 0.0, 0.0]]))
