"""Weights that fit a model, and what is said of those that do not."""

import pytest
import torch
from torch import nn
from toy_task import ToyDetector

from mmdet.checkpoints import Checkpoint, fit_weights
from mmdet.config.errors import UserError


def test_weights_are_found_in_common_layouts():
    a = torch.zeros(1)
    for checkpoint in (dict(a=a), dict(state_dict={'module.a': a}), dict(model=dict(a=a), epoch=3)):
        assert list(Checkpoint(checkpoint, 'x.pth').weights) == ['a']


def test_another_architecture_is_named_with_at_most_ten_keys(tmp_path):
    model = nn.Sequential(*[nn.Linear(3, 3) for _ in range(20)])
    with pytest.raises(UserError) as caught:
        fit_weights(model, {f'layer{i}.weight': torch.zeros(1) for i in range(30)}, 'other.pth')
    text = str(caught.value)
    assert text.startswith('other.pth does not fit Sequential: 0 of 40 weights have their place. 40 not in the file')
    assert text.count('.weight') + text.count('.bias') <= 10 and '\n' not in text
    weights = model.state_dict() | {'0.weight': torch.zeros(5, 3)}
    with pytest.raises(UserError, match=r'1 shape: 0.weight \(file \(5, 3\), model \(3, 3\)\)'):
        fit_weights(model, weights, 'x.pth')


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_weights_of_a_diverged_training_are_refused(value):
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    weights = {name: t.clone() for name, t in model.state_dict().items()}
    weights['1.running_var'][1] = value
    with pytest.raises(UserError, match=r'x.pth: NaN or infinity in 1 of 7 weights \(1.running_var\)'):
        fit_weights(model, weights, 'x.pth')


def test_fine_tuning_keeps_what_does_not_fit():
    old, new = ToyDetector(num_classes=2), ToyDetector(num_classes=5)
    fresh = new.head.fc.weight.clone()
    new.load_state_dict(fit_weights(new, old.state_dict(), 'old.pth', strict=False))
    assert torch.equal(new.stem.weight, old.stem.weight) and torch.equal(new.head.fc.weight, fresh)
    with pytest.raises(UserError, match='does not fit ToyDetector'):
        fit_weights(new, old.state_dict(), 'old.pth')
