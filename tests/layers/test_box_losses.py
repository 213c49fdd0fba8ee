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
