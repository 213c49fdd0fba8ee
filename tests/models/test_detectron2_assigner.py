"""detectron2's matching, which `configs/detectron2` asks for, against loops over pairs and through the RPN's loss."""

import pytest
import torch
from mmengine.config import Config

from mmdet.models import MaxIoUAssigner
from mmdet.models.task_modules.protocols import IGNORED, NEGATIVE
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures import Target
from mmdet.structures.boxes import box_iou

NONE = torch.zeros(0, 4)


def iou_of(a: list[float], b: list[float]) -> float:
    width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    inter = max(width, 0) * max(height, 0)
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def slow_match(anchors: torch.Tensor, gt: torch.Tensor, low: float, high: float) -> list[int]:
    """Each anchor keeps its own best object; it is positive from `high` on, or as one of an object's best anchors."""
    table = [[iou_of(g, a) for a in anchors.tolist()] for g in gt.tolist()]
    matched = []
    for column in range(len(anchors)):
        own = [row[column] for row in table]
        best = max(own)
        chosen = any(row[column] == max(row) > 0 for row in table)
        matched.append(own.index(best) if best >= high or chosen else NEGATIVE if best < low else IGNORED)
    return matched


def boxes(n: int, seed: int, size: float) -> torch.Tensor:
    """On a grid of a quarter pixel, so that ties happen and all sums are exact."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 240, (n, 2), generator=generator) / 4
    return torch.cat([corner, corner + torch.randint(8, int(4 * size), (n, 2), generator=generator) / 4], 1)


@pytest.mark.parametrize('size', [4, 9, 40])
@pytest.mark.parametrize('seed', range(4))
def test_equals_loops_over_pairs(size, seed):
    gt, anchors = boxes(7, seed, size), boxes(160, seed + 10, 40)
    gt = torch.cat([gt, gt[:2] + 1, gt[:1]])  # objects that overlap, and two that are the same
    assigner = MaxIoUAssigner(0.7, 0.3, min_pos_iou=0, low_quality_to_best_gt=True)
    matched, _ = assigner.assign(anchors.double(), gt.double(), NONE.double())
    assert matched.tolist() == slow_match(anchors, gt, 0.3, 0.7)
    assert (matched >= 0).any()


def test_the_two_rules_differ_where_an_object_takes_an_anchor_that_overlaps_another_more():
    anchors = torch.tensor([[0.0, 0, 20, 20], [40, 40, 60, 60]])
    gt = torch.tensor([[0.0, 0, 20, 18], [0, 0, 20, 8]])  # both have the first anchor for their best
    theirs = MaxIoUAssigner(0.7, 0.3, min_pos_iou=0, low_quality_to_best_gt=True)
    assert theirs.assign(anchors, gt, NONE)[0].tolist() == [0, NEGATIVE]
    assert MaxIoUAssigner(0.7, 0.3, min_pos_iou=0).assign(anchors, gt, NONE)[0].tolist() == [1, NEGATIVE]


@pytest.mark.parametrize('name', ['faster_rcnn', 'mask_rcnn', 'cascade_mask_rcnn', 'retinanet'])
def test_small_objects_train_the_boxes_under_detectron2s_configs(name):
    cfg = Config.fromfile(f'configs/detectron2/{name}_r50_fpn.py', lazy_import=False).model
    base = Config.fromfile('configs/_base_/models/faster_rcnn_r50_fpn.py', lazy_import=False).model
    train_cfg = cfg.train_cfg if name == 'retinanet' else cfg.train_cfg.rpn
    head_cfg = dict(cfg.bbox_head if name == 'retinanet' else cfg.rpn_head, in_channels=8, feat_channels=8)
    gt = boxes(6, 0, 9)[:, :2].repeat(1, 2) + torch.tensor([0, 0, 6, 7.0])
    target = Target(gt, torch.zeros(6, dtype=torch.int64), None, NONE, (64, 64))
    features = [torch.rand(1, 8, size, size) for size in ((8, 4, 2, 1, 1) if name == 'retinanet' else (16, 8, 4, 2, 1))]
    found = {}
    for key, assigner in (('theirs', train_cfg.assigner), ('ours', base.train_cfg.rpn.assigner)):
        torch.manual_seed(0)
        head = MODELS.build(dict(head_cfg, train_cfg=dict(train_cfg, assigner=assigner)))
        losses = head.loss(*head(features), [target])
        found[key] = losses.get('loss_rpn_bbox', losses['loss_bbox'] if name == 'retinanet' else None)
    assert found['theirs'] > 0.01 and found['ours'] == 0
    anchors = torch.cat(head.anchor_generator.grid_priors([f.shape[-2:] for f in features]))
    matched, _ = TASK_UTILS.build(train_cfg.assigner).assign(anchors, gt, NONE)
    assert (matched[box_iou(gt, anchors).argmax(1)] >= 0).all()  # by loops the ties of these anchors round otherwise
