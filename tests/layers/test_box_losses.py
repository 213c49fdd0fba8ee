"""IoU and focal losses against torchvision's."""

import pytest
import torch
from torchvision import ops

from mmdet.registry import MODELS


def boxes(n: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=generator) * 50
    return torch.cat([corner, corner + 1 + torch.rand(n, 2, generator=generator) * 60], dim=1)


@pytest.mark.parametrize(
    'name, reference',
    [
        ('GIoULoss', ops.generalized_box_iou_loss),
        ('DIoULoss', ops.distance_box_iou_loss),
        ('CIoULoss', ops.complete_box_iou_loss),
    ],
)
def test_equals_torchvision(name, reference):
    loss = MODELS.build(dict(type=name, eps=1e-7, loss_weight=2.0))
    pred, target = boxes(200, 0), boxes(200, 1)
    if name == 'CIoULoss':  # ours has its shape term from an IoU of 0.5 on, torchvision's always
        pred = target + 8 * (pred / 110 - 0.5)
        good = ops.box_iou(pred, target).diagonal() > 0.51
        pred, target = pred[good], target[good]
        assert len(pred) > 100
    pred.requires_grad_()
    other = pred.detach().clone().requires_grad_()
    weight = torch.rand(len(pred))
    value = loss(pred, target, weight, avg_factor=50)
    expected = 2 * (reference(other, target) * weight).sum() / 50
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    value.backward()
    expected.backward()
    torch.testing.assert_close(pred.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_ciou_is_diou_below_half():
    pred, target = boxes(200, 0), boxes(200, 1)
    poor = ops.box_iou(pred, target).diagonal() < 0.49
    values = [MODELS.build(dict(type=name))(pred[poor], target[poor]) for name in ('CIoULoss', 'DIoULoss')]
    assert poor.sum() > 100 and values[0] == values[1]


@pytest.mark.parametrize('mode', ['log', 'linear', 'square'])
def test_iou_loss(mode):
    pred, target = boxes(200, 0).requires_grad_(), boxes(200, 1)
    iou = ops.box_iou(pred, target).diagonal().clamp(min=1e-6)
    expected = dict(log=-iou.log(), linear=1 - iou, square=1 - iou**2)[mode].mean()
    value = MODELS.build(dict(type='IoULoss', mode=mode))(pred, target)
    torch.testing.assert_close(value, expected)
    value.backward()
    assert torch.isfinite(pred.grad).all()
    with pytest.raises(ValueError, match='mode must be'):
        MODELS.build(dict(type='IoULoss', mode='cubic'))


@pytest.mark.parametrize('name', ['IoULoss', 'GIoULoss', 'DIoULoss', 'CIoULoss'])
def test_equal_disjoint_empty_and_degenerate_boxes(name):
    loss = MODELS.build(dict(type=name))
    same = boxes(5, 0)
    assert loss(same, same) < 1e-5
    apart = torch.tensor([[0.0, 0, 1, 1]], requires_grad=True)
    value = loss(apart, torch.tensor([[5.0, 5, 6, 6]]))
    assert value >= 1
    empty = torch.zeros(0, 4, requires_grad=True)
    loss(empty, torch.zeros(0, 4)).backward()
    assert empty.grad.shape == (0, 4)
    point = torch.tensor([[3.0, 3, 3, 3]], requires_grad=True)
    value = loss(point, point.detach())
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(point.grad).all()


def test_focal_loss_equals_torchvision():
    torch.manual_seed(0)
    logits = (torch.randn(100, 7) * 4).requires_grad_()
    labels = torch.randint(0, 8, (100,))  # 7 is the background
    hot = torch.nn.functional.one_hot(labels, 8)[:, :7].float()
    weight = torch.rand(100)
    loss = MODELS.build(dict(type='FocalLoss', gamma=1.5, alpha=0.3, loss_weight=3.0))
    value = loss(logits, labels, weight, avg_factor=12)
    expected = 3 * (ops.sigmoid_focal_loss(logits, hot, 0.3, 1.5) * weight[:, None]).sum() / 12
    torch.testing.assert_close(value, expected)
    with pytest.raises(ValueError, match='use_sigmoid=True'):
        MODELS.build(dict(type='FocalLoss', use_sigmoid=False))


def test_focal_loss_of_a_right_prediction_is_the_small_positive_number_that_it_is():
    """Many sure negatives beside few sure positives: a difference of sums would lose all digits, and the sign."""
    torch.manual_seed(0)
    labels = torch.full((4000,), 7)
    labels[::400] = torch.randint(0, 7, (10,))
    hot = torch.nn.functional.one_hot(labels, 8)[:, :7].double()
    logits = (2 * hot - 1) * (14 + torch.rand(4000, 7))
    loss = MODELS.build(dict(type='FocalLoss'))
    for weight in (None, torch.rand(4000), torch.rand(4000, 7)):
        factor = 1 if weight is None else weight.double().reshape(4000, -1)
        expected = (ops.sigmoid_focal_loss(logits, hot, 0.25, 2.0) * factor).sum() / 10
        value = loss(logits.float(), labels, weight, avg_factor=10)
        assert 0 < value.item() == pytest.approx(expected.item(), rel=1e-5)
    wrong = logits.float() * (1 - 2 * (torch.arange(4000) == 0)[:, None])  # one of them is as wrong as can be
    expected = ops.sigmoid_focal_loss(wrong.double(), hot, 0.25, 2.0).sum()
    assert loss(wrong, labels, avg_factor=1).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize('name', ['IoULoss', 'GIoULoss', 'DIoULoss', 'CIoULoss', 'BoundedIoULoss'])
@pytest.mark.parametrize('count', [1, 4, 6])
def test_four_weights_of_a_box_count_as_their_mean(name, count):
    loss, weight = MODELS.build(dict(type=name)), torch.rand(count)
    pred, target = boxes(count, 0), boxes(count, 1)
    value = loss(pred, target, weight[:, None].expand(count, 4), avg_factor=3)
    torch.testing.assert_close(value, loss(pred, target, weight, avg_factor=3))
    uneven = torch.tensor([4.0, 0, 0, 0]).expand(count, 4)
    if name != 'BoundedIoULoss':  # whose terms are those of the four coordinates
        torch.testing.assert_close(loss(pred, target, uneven), loss(pred, target))
    assert loss(pred, target, torch.zeros(count, 4), avg_factor=3) == 0


@pytest.mark.parametrize('count', [1, 4])
def test_weights_of_eight_tenths_overlap(count):
    pred = torch.tensor([[0.0, 0, 10, 8]]).expand(count, 4)
    target = torch.tensor([[0.0, 0, 10, 10]]).expand(count, 4)
    value = MODELS.build(dict(type='IoULoss'))(pred, target, torch.ones(count, 4), avg_factor=count)
    assert value.item() == pytest.approx(0.2231, abs=1e-4)  # -log 0.8


@pytest.mark.parametrize('name', [
    'IoULoss', 'GIoULoss', 'DIoULoss', 'CIoULoss', 'BoundedIoULoss', 'L1Loss', 'SmoothL1Loss', 'BalancedL1Loss'
])  # fmt: skip
@pytest.mark.parametrize('pred, target, weight', [
    ((4, 4), (4, 4), (3,)), ((4, 4), (4, 4), (1,)), ((4, 4), (4, 4), (4, 1)), ((4, 4), (4, 4), (1, 4)),
    ((4, 4), (4,), (4,)), ((4, 4), (1, 4), (4,)), ((4, 4), (4, 1), None),
])  # fmt: skip
def test_box_losses_refuse_shapes_that_would_be_broadcast(name, pred, target, weight):
    weight = None if weight is None else torch.ones(weight)
    with pytest.raises(ValueError, match='of shape'):
        MODELS.build(dict(type=name))(torch.rand(pred), torch.rand(target), weight, avg_factor=4)


def test_one_weight_a_row_of_deltas():
    pred, target, weight = torch.rand(4, 4), torch.rand(4, 4), torch.rand(4)
    value = MODELS.build(dict(type='L1Loss'))(pred, target, weight, avg_factor=1)
    torch.testing.assert_close(value, ((pred - target).abs() * weight[:, None]).sum())


@pytest.mark.parametrize('cfg, logits, target, weight', [
    (dict(type='FocalLoss'), (5, 5), (5,), (4,)),
    (dict(type='FocalLoss'), (5, 5), (4,), None),
    (dict(type='FocalLoss'), (5, 5), (5,), (1, 5)),
    (dict(type='CrossEntropyLoss'), (5, 5), (5,), (5, 5)),
    (dict(type='CrossEntropyLoss'), (5, 5), (5,), (1,)),
    (dict(type='CrossEntropyLoss', use_sigmoid=True), (5, 5), (1,), None),
    (dict(type='CrossEntropyLoss', use_sigmoid=True), (5, 5), (5,), (1,)),
    (dict(type='CrossEntropyLoss', use_mask=True), (5, 3, 3), (1, 3, 3), None),
    (dict(type='CrossEntropyLoss', use_mask=True), (5, 3, 3), (5, 3, 3), (3, 3)),
])  # fmt: skip
def test_class_losses_refuse_shapes_that_would_be_broadcast(cfg, logits, target, weight):
    kind = torch.rand if len(target) > 1 else lambda shape: torch.zeros(shape, dtype=torch.long)
    weight = None if weight is None else torch.ones(weight)
    with pytest.raises(ValueError, match='of shape'):
        MODELS.build(cfg)(torch.rand(logits), kind(target), weight, avg_factor=4)


@pytest.mark.parametrize('cfg', [dict(type='FocalLoss'), dict(type='CrossEntropyLoss', use_sigmoid=True),
                                 dict(type='CrossEntropyLoss')])  # fmt: skip
@pytest.mark.parametrize('label', [-1, 5])
def test_labels_beyond_the_classes(cfg, label):
    """Of four classes, with 4 for the background."""
    loss, logits = MODELS.build(cfg), torch.zeros(3, 5 if cfg == dict(type='CrossEntropyLoss') else 4)
    assert loss(logits, torch.tensor([0, 4, 3])).isfinite()
    with pytest.raises(ValueError, match=f'labels from {min(label, 0)} to .*of 4 classes they are 0 to 3'):
        loss(logits, torch.tensor([0, label, 0]))


def test_samples_that_are_ignored_by_their_label():
    loss, logits = MODELS.build(dict(type='CrossEntropyLoss', ignore_index=-100)), torch.randn(3, 5)
    assert loss(logits, torch.tensor([1, -100, 2])) * 3 == pytest.approx(2 * loss(logits[::2], torch.tensor([1, 2])))
