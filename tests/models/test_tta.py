"""Test-time augmentation: several views of an image give what they should, exactly where that can be said."""

import inspect

import factories
import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData
from pycocotools import mask as coco_mask
from torch import nn

from mmdet.config.errors import UserError
from mmdet.datasets.transforms import TestTimeAug as Views
from mmdet.models import DetTTAModel
from mmdet.ops import soft_nms
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample, RLEMasks
from mmdet.structures.boxes import flip_boxes


def fields_of(sample: DetDataSample) -> tuple:
    found = sample.pred_instances
    return found.bboxes, found.scores, found.labels


def assert_equal(found: list[DetDataSample], expected: list[DetDataSample]) -> None:
    """To the bit, and in order."""
    for one, other in zip(found, expected, strict=True):
        assert all(a.equal(b) for a, b in zip(fields_of(one), fields_of(other)))
        assert one.pred_instances.get('masks') == other.pred_instances.get('masks')


def views_of(data: dict, count: int) -> dict:
    """A batch of factories.batch as TestTimeAug and the data loader give it: `count` equal views of each image."""
    samples = [[sample.clone() for sample in data['data_samples']] for _ in range(count)]
    return dict(inputs=[data['inputs']] * count, data_samples=samples)


@pytest.mark.parametrize('kind', factories.KINDS)
def test_equal_views_give_the_plain_result_exactly(kind):
    """One identical view; and, but for proposals, which NMS meets level by level, two."""
    model = factories.tiny_detector(kind).eval()
    model.final_test_cfg.update(max_per_img=20, **({} if kind == 'rpn' else dict(score_thr=0.0)))
    data = factories.batch([0, 0])
    with torch.no_grad():
        plain = model.test_step(dict(data, data_samples=[sample.clone() for sample in data['data_samples']]))
        assert all(len(sample.pred_instances) == 20 for sample in plain)
        for count in (1,) if kind == 'rpn' else (1, 2):
            assert_equal(DetTTAModel(model).test_step(views_of(data, count)), plain)


# ------------------------------------------------------------------ a symmetric model


class Pooled(nn.Module):
    """Means of 8 x 8 pixels: the mirrored image gives the mirrored map."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (nn.functional.avg_pool2d(x, 8),)


def symmetric_detector() -> nn.Module:
    """A RetinaNet that finds the mirrored boxes in the mirrored image, to the bit.

    Its kernels are symmetric, its weights small multiples of 1/2048 so that sums are exact in any order, its anchors
    squares around the middle of each 8 x 8 pixels, its deltas zero.
    """
    model = MODELS.build(dict(
        type='RetinaNet', backbone=dict(type=Pooled), neck=None,
        bbox_head=dict(
            type='RetinaHead', num_classes=3, in_channels=3, stacked_convs=0,
            anchor_generator=dict(
                type='AnchorGenerator', strides=[8], ratios=[1.0], scales=[2.0, 4.0], center_offset=0.5),
        ),
        test_cfg=dict(score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=30),
    )).eval()  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    head = model.bbox_head
    kernel = torch.randint(-4, 5, head.retina_cls.weight.shape, generator=generator) / 2048
    head.retina_cls.weight.data = kernel + kernel.flip(3)
    for parameter in (head.retina_cls.bias, head.retina_reg.weight, head.retina_reg.bias):
        parameter.data.zero_()
    return model


def image_of(seed: int) -> dict:
    """What a pipeline starts from after loading: 64 x 96 pixels, to be shown at that size."""
    img = np.random.default_rng(seed).integers(0, 256, (64, 96, 3), np.uint8)
    return dict(img=img, img_shape=(64, 96), ori_shape=(64, 96), scale_factor=(1.0, 1.0), img_id=seed, img_path='x.png')


def flips(*chances: float) -> Views:
    return Views([[dict(type='RandomFlip', prob=p) for p in chances], [dict(type='PackDetInputs')]])


@pytest.mark.parametrize('chances', [(0.0,), (1.0,), (0.0, 1.0), (1.0, 0.0)])
def test_a_flip_of_a_symmetric_model_gives_the_plain_result_exactly(chances):
    model = symmetric_detector()
    plain, seen = (
        pseudo_collate([views(image_of(seed)) for seed in (0, 1)]) for views in (flips(0.0), flips(*chances))
    )
    with torch.no_grad():
        expected = model.test_step({key: values[0] for key, values in plain.items()})
        found = DetTTAModel(model, dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=30)).test_step(seen)
    for sample in expected:
        boxes, scores, _ = fields_of(sample)
        assert len(boxes) == 30 and len(scores.unique()) == 30
        mirrored = flip_boxes(boxes, (64, 96), 'horizontal')
        assert not any(box.equal(other) for box, other in zip(boxes, mirrored))  # not symmetric by chance
    assert_equal(found, expected)


# ------------------------------------------------------------------ merging


def view(boxes: list, scores: list, masks: list | None = None, **meta) -> DetDataSample:
    """What a detector says of a view of 6 x 8 pixels."""
    sample = DetDataSample(metainfo=dict(ori_shape=(6, 8), img_id=1, **meta))
    sample.pred_instances = InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        scores=torch.tensor(scores),
        labels=torch.zeros(len(boxes), dtype=torch.int64),
    )
    if masks is not None:
        sample.pred_instances.masks = RLEMasks.of(np.array(masks, bool).reshape(-1, 6, 8), 6, 8)
    return sample


class Nothing(nn.Module):
    """Stands where the detector would: only the merging is asked."""

    def test_step(self, data: dict) -> list:
        return data['data_samples']


def square(x1: int, y1: int, x2: int, y2: int) -> np.ndarray:
    mask = np.zeros((6, 8), bool)
    mask[y1:y2, x1:x2] = True
    return mask


@pytest.mark.parametrize('direction, box', [
    ('horizontal', [5, 1, 7, 3]), ('vertical', [1, 3, 3, 5]), ('diagonal', [5, 3, 7, 5]),
])  # fmt: skip
def test_boxes_and_masks_come_back_from_each_direction(direction, box):
    """An object at (1, 1, 3, 3) is found best in the mirrored view, another in the plain one alone."""
    plain = view([[1, 1, 3, 3], [4, 0, 8, 2]], [0.6, 0.5], [square(1, 1, 3, 3), square(4, 0, 8, 2)], flip=False)
    mask = square(*box)
    mask[box[1], box[0]] = False  # one pixel less: whose mask it is
    flipped = view([box], [0.9], [mask], flip=True, flip_direction=direction)
    model = DetTTAModel(Nothing(), dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=10))
    (merged,) = model.test_step(dict(data_samples=[[flipped], [plain]]))
    found = merged.pred_instances
    assert found.bboxes.tolist() == [[1, 1, 3, 3], [4, 0, 8, 2]] and found.scores.tolist() == pytest.approx([0.9, 0.5])
    axes = dict(horizontal=[1], vertical=[0], diagonal=[0, 1])[direction]
    assert (found.masks.numpy() == np.stack([np.flip(mask, axes), square(4, 0, 8, 2)])).all()
    assert merged is plain and not merged.flip
    assert coco_mask.area(list(found.masks)).tolist() == [3, 8]


def test_the_best_of_all_views_remain_and_nothing_is_well_merged():
    boxes = [[0, 0, 2, 2], [4, 0, 6, 2], [0, 3, 2, 5]]
    first, second = view(boxes[:2], [0.3, 0.7]), view(boxes[2:], [0.5])
    model = DetTTAModel(Nothing(), dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=2))
    (merged,) = model.merge_preds([(first, second)])
    assert merged.pred_instances.bboxes.tolist() == [boxes[1], boxes[2]]
    empty = view([], [], [], flip=True, flip_direction='horizontal')
    (merged,) = model.merge_preds([(empty, view([], [], []))])
    assert len(merged.pred_instances) == 0 and merged.pred_instances.masks.shape == (0, 6, 8)


def test_wrong_settings_are_refused():
    with pytest.raises(UserError, match="tta_model.tta_cfg has no key 'nms_thr'"):
        DetTTAModel(Nothing(), dict(nms_thr=0.5))
    with pytest.raises(UserError, match='tta_model.tta_cfg has no max_per_img, which Nothing'):
        DetTTAModel(Nothing(), dict(nms=dict(type='nms', iou_threshold=0.5)))
    with pytest.raises(UserError, match='transforms must be lists'):
        Views([dict(type='PackDetInputs')])


def test_settings_are_the_detectors_own():
    model = factories.tiny_detector('faster_rcnn')
    cfg = model.test_cfg.rcnn
    cfg.nms, cfg.max_per_img = dict(type='soft_nms', iou_threshold=0.4, min_score=0.05), 7
    assert DetTTAModel(model).tta_cfg == dict(nms=dict(type='nms', iou_threshold=0.4), max_per_img=7)
    assert DetTTAModel(model, dict(max_per_img=9)).tta_cfg['max_per_img'] == 9
    cfg.nms = dict(type='soft_nms')
    threshold = inspect.signature(soft_nms).parameters['iou_threshold'].default
    assert DetTTAModel(model).tta_cfg['nms'] == dict(type='nms', iou_threshold=threshold)
