"""Counts of a detector against numbers worked out by hand, and against what a real forward pass computes."""

import factories
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mmdet.apis.counts import Count, count
from mmdet.apis.stage_times import random_batch

PROPOSALS, MASKS = 30, 7


def cfg_of(kind: str, **options) -> dict:
    """A detector that makes exactly so many proposals and detections, untrained as it is."""
    cfg = factories.small_cfg(kind, width=16, channels=16, hidden=32, **options)
    if 'rpn' in cfg.test_cfg:
        cfg.test_cfg.rpn.update(nms=dict(type='nms', iou_threshold=1.0), max_per_img=PROPOSALS, min_bbox_size=0)
    if kind != 'rpn':
        rcnn = cfg.test_cfg.get('rcnn', cfg.test_cfg)
        rcnn.update(score_thr=0.0, nms=dict(type='nms', iou_threshold=1.0), max_per_img=MASKS)
    return cfg.to_dict()


def conv(height: int, width: int, inputs: int, outputs: int, kernel: int = 3) -> int:
    return height * width * inputs * outputs * kernel**2


def test_numbers_by_hand():
    """ResNet-18 of 16, 32, 64, 128 channels, FPN of 16, an image of 64 x 96."""
    counts = count(cfg_of('mask_rcnn'), (64, 96))
    maps = [(16, 24), (8, 12), (4, 6), (2, 3)]
    channels = [16, 32, 64, 128]

    backbone = conv(32, 48, 3, 16, 7) + 4 * conv(16, 24, 16, 16)
    values = 32 * 48 * 16 + 4 * 16 * 24 * 16
    weights = 3 * 16 * 49 + 4 * 16 * 16 * 9 + 2 * 5 * 16  # the norms' two vectors
    for size, before, now in zip(maps[1:], channels, channels[1:]):
        backbone += conv(*size, before, now) + 3 * conv(*size, now, now) + conv(*size, before, now, 1)
        values += 5 * size[0] * size[1] * now
        weights += before * now * 9 + 3 * now * now * 9 + before * now + 2 * 5 * now
    assert counts['backbone'] == Count(weights, backbone, values)

    positions = sum(height * width for height, width in maps)
    neck = sum(conv(*size, inputs, 16, 1) + conv(*size, 16, 16) for size, inputs in zip(maps, channels))
    assert counts['neck'] == Count(sum(channels) * 16 + 4 * 16 + 4 * (16 * 16 * 9 + 16), neck, 2 * 16 * positions)

    positions += 1 * 2  # the fifth map
    of_position = 16 * 16 * 9 + 16 * 3 + 16 * 12  # three anchors: their scores and deltas
    assert counts['rpn head'] == Count(of_position + 16 + 3 + 12, of_position * positions, (16 + 3 + 12) * positions)

    of_roi = 16 * 49 * 32 + 32 * 32 + 32 * 4 + 32 * 12  # three classes and the background
    outputs = 32 + 32 + 4 + 12
    assert counts['roi head'] == Count(of_roi + outputs, of_roi * PROPOSALS, outputs * PROPOSALS)

    of_mask = 4 * conv(14, 14, 16, 16) + conv(14, 14, 16, 16, 2) + conv(28, 28, 16, 3, 1)
    masks = counts['masks']
    assert masks.multiply_adds == of_mask * MASKS
    assert masks.activations == MASKS * (4 * 14 * 14 * 16 + 28 * 28 * 16 + 28 * 28 * 3)
    assert masks.parameters == 4 * (16 * 16 * 9 + 16) + 16 * 16 * 4 + 16 + 16 * 3 + 3
    assert 'other' not in counts


@pytest.mark.parametrize('kind', factories.KINDS)
def test_what_a_forward_pass_computes(kind):
    cfg = cfg_of(kind)
    model = factories.build(cfg).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        found, = model.test_step(random_batch((64, 96), 1))
    if 'masks' in found.pred_instances:
        assert len(found.pred_instances) == MASKS
    total = sum(count(cfg, (64, 96)).values(), Count())
    assert 2 * total.multiply_adds == counter.get_total_flops()
    assert total.parameters == sum(p.numel() for p in model.parameters())


def test_given_numbers_of_rois():
    cfg = cfg_of('faster_rcnn')
    few, many = (count(cfg, (64, 96), proposals=number)['roi head'] for number in (None, 3 * PROPOSALS))
    assert many.multiply_adds == 3 * few.multiply_adds and many.parameters == few.parameters


def test_deformable_convolution():
    """As many as the convolution it replaces, and those of its offsets: 18 channels, in three blocks."""
    cfg = cfg_of('faster_rcnn', depth=50)
    plain = count(cfg, (64, 96))['backbone']
    cfg['backbone'].update(dcn=dict(type='DCN', deform_groups=1), stage_with_dcn=(False, False, False, True))
    deformed = count(cfg, (64, 96))['backbone']
    assert deformed.multiply_adds - plain.multiply_adds == 3 * conv(2, 3, 128, 18)
    assert deformed.activations - plain.activations == 3 * 2 * 3 * 18
