"""Recomputed population statistics against the same computed on everything at once."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmdet.engine.hooks import PreciseBNHook, precise_statistics
from mmdet.layers import BatchRenorm, CrossIterBatchNorm2d, conv_norm
from mmdet.registry import HOOKS


class Net(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 4, 3, bias=False), norm(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 5, 3, bias=False), norm(5)

    def forward(self, x):
        x = conv_norm(self.conv1, self.norm1, x).relu()
        return conv_norm(self.conv2, self.norm2, x)


def pictures(count=6):
    torch.manual_seed(1)  # with different means: the variance between batches matters
    return [torch.randn(2, 3, 8, 8) + torch.randn(1, 3, 1, 1) * 2 for _ in range(count)]


@pytest.mark.parametrize('norm', [nn.BatchNorm2d, CrossIterBatchNorm2d, BatchRenorm])
def test_population_statistics_of_the_first_layer_are_those_of_all_positions(norm):
    model, batches = Net(norm), pictures()
    assert precise_statistics(model, model, batches) == 2
    y = model.conv1(torch.cat(batches)).detach()
    torch.testing.assert_close(model.norm1.running_mean, y.mean((0, 2, 3)))
    torch.testing.assert_close(model.norm1.running_var, y.var((0, 2, 3)))
    assert model.training and model.norm1.training


def test_later_layers_see_what_batch_norm_gives_them():
    """Cumulative running averages of BatchNorm2d in training mode are the 'batch' statistics of every layer."""
    torch.manual_seed(0)
    model, batches = Net(nn.BatchNorm2d), pictures()
    average = Net(lambda c: nn.BatchNorm2d(c, momentum=None))
    average.load_state_dict(model.state_dict())
    with torch.no_grad():
        for batch in batches:
            average(batch)
    precise_statistics(model, model, batches, variance='batch')
    for name in ('norm1', 'norm2'):
        got, want = getattr(model, name), getattr(average, name)
        torch.testing.assert_close(got.running_mean, want.running_mean)
        torch.testing.assert_close(got.running_var, want.running_var)


def test_the_population_variance_exceeds_the_batches_own():
    model, batches = Net(nn.BatchNorm2d), pictures()
    precise_statistics(model, model, batches, variance='batch')
    within = model.norm1.running_var.clone()
    precise_statistics(model, model, batches, variance='population')
    assert (model.norm1.running_var > within).all()


def test_frozen_layers_and_the_history_of_cbn_stay_as_they_are():
    model, batches = Net(CrossIterBatchNorm2d), pictures()
    model(batches[0]).sum().backward()
    history = model.norm2.history
    model.norm1.eval()
    frozen = model.norm1.running_mean.clone()
    assert precise_statistics(model, model, batches) == 1
    assert torch.equal(model.norm1.running_mean, frozen) and not model.norm1.training
    assert model.norm2.history is history


def test_a_failing_batch_leaves_the_statistics_as_they_were():
    model = Net(nn.BatchNorm2d)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(RuntimeError):
        precise_statistics(model, model, [*pictures(2), torch.rand(2, 1, 8, 8)])
    torch.testing.assert_close(model.state_dict(), before)
    assert model.norm1.training


def test_layers_without_input_keep_their_statistics():
    model = Net(nn.BatchNorm2d)
    model.norm1.running_mean.fill_(3.0)
    precise_statistics(model, model, [])
    assert (model.norm1.running_mean == 3).all()


@pytest.mark.parametrize('options', [dict(variance='biased'), dict(num_iters=0)])
def test_options_out_of_range(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        PreciseBNHook(**options)


class Detector(Net):
    """The two methods of a model that the hook calls."""

    data_preprocessor = staticmethod(lambda data, training: dict(x=data))

    def forward(self, x, mode='tensor'):
        assert mode in ('loss', 'tensor')
        return super().forward(x)


def runner_at(epoch, loader, max_epochs=4):
    logger = SimpleNamespace(info=lambda text: None)
    model = Detector(nn.BatchNorm2d)
    return SimpleNamespace(
        epoch=epoch, max_epochs=max_epochs, model=model, train_dataloader=loader, logger=logger
    )


@pytest.mark.parametrize(
    'epoch, interval, runs', [(3, -1, True), (2, -1, False), (1, 2, True), (2, 2, False), (3, 3, True)]
)
def test_the_hook_runs_at_its_epochs_and_counts_batches_over_a_short_loader(epoch, interval, runs):
    batches = pictures(4)
    runner = runner_at(epoch, batches)
    untouched = runner.model.norm1.running_mean.clone()
    hook = HOOKS.build(dict(type='PreciseBNHook', num_iters=6, interval=interval))
    hook.after_train_epoch(runner)
    if not runs:
        assert torch.equal(runner.model.norm1.running_mean, untouched)
        return
    y = runner.model.conv1(torch.cat([*batches, *batches[:2]])).detach()
    torch.testing.assert_close(runner.model.norm1.running_mean, y.mean((0, 2, 3)))


def test_the_hook_says_when_there_is_no_data():
    with pytest.raises(ValueError, match='empty'):
        PreciseBNHook(num_iters=2).after_train_epoch(runner_at(3, []))
