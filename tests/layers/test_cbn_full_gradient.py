"""``full_gradient=True``: CBN's output, and the weight's gradient of BatchNorm on all batches of the history."""

import copy

import pytest
import torch
import torch.utils.checkpoint
from torch import nn

from mmdet.layers import CrossIterBatchNorm2d, conv_norm

CONVS = {
    '3x3': lambda: nn.Conv2d(3, 6, 3, padding=1, bias=False),
    'strided, biased': lambda: nn.Conv2d(3, 6, 3, stride=2),
    'grouped': lambda: nn.Conv2d(3, 6, 3, groups=3, bias=False),
}


def setting(conv, full=True, **options):
    torch.manual_seed(0)
    layer = CrossIterBatchNorm2d(6, buffer_num=2, full_gradient=full, **options).double()
    with torch.no_grad():
        layer.weight.uniform_(0.5, 1.5)
        layer.bias.normal_()
    return CONVS[conv]().double(), layer, torch.randn(3, 2, 3, 7, 7, dtype=torch.float64)


@pytest.mark.parametrize('conv', CONVS)
@pytest.mark.parametrize('compensation', ['taylor', 'root'])
def test_with_unchanged_weights_the_gradient_is_batch_norm_s_on_all_batches(conv, compensation):
    conv, layer, batches = setting(conv, compensation=compensation)
    plain = nn.BatchNorm2d(6).double()
    plain.load_state_dict(layer.state_dict())
    for batch in batches[:2]:
        conv_norm(conv, layer, batch)
    out = conv_norm(conv, layer, batches[2])
    expected = plain(conv(batches.flatten(0, 1)))[4:]
    torch.testing.assert_close(out, expected)
    direction = torch.randn_like(out)
    parameters = (conv.weight, layer.weight, layer.bias)
    got = torch.autograd.grad(out, parameters, direction)
    want = torch.autograd.grad(expected, (conv.weight, plain.weight, plain.bias), direction)
    for g, w in zip(got, want):
        torch.testing.assert_close(g, w)


@pytest.mark.parametrize('rho, compensation', [(1.0, 'taylor'), (1.0, 'root'), (0.0, 'taylor')])
def test_the_gradient_is_that_of_the_output_as_a_function_of_the_weight(rho, compensation):
    """Against finite differences, after the weights have moved."""
    conv, layer, batches = setting('3x3', rho=rho, compensation=compensation)
    for batch in batches[:2]:
        conv_norm(conv, layer, batch)
        with torch.no_grad():
            conv.weight.add_(torch.randn_like(conv.weight) * 0.02)
    direction = torch.randn(2, 6, 7, 7, dtype=torch.float64)

    def value(weight):
        moved, same = copy.deepcopy(conv), copy.deepcopy(layer)
        with torch.no_grad():
            moved.weight.copy_(weight)
        return (conv_norm(moved, same, batches[2]) * direction).sum()

    step, eps = torch.randn_like(conv.weight), 1e-6
    w = conv.weight.detach()
    difference = (value(w + eps * step) - value(w - eps * step)) / (2 * eps)
    out = conv_norm(conv, layer, batches[2])
    (gradient,) = torch.autograd.grad((out * direction).sum(), conv.weight)
    torch.testing.assert_close((gradient * step).sum(), difference.detach(), rtol=1e-6, atol=1e-6)


def test_the_output_and_the_input_s_gradient_are_cbn_s():
    conv, layer, batches = setting('3x3')
    _, paper, _ = setting('3x3', full=False)
    x = batches.clone().requires_grad_()
    for batch in x:
        out, expected = conv_norm(conv, layer, batch), conv_norm(conv, paper, batch)
        assert torch.equal(out, expected)
    direction = torch.randn_like(out)
    for got, want in zip(torch.autograd.grad(out, (x,), direction), torch.autograd.grad(expected, (x,), direction)):
        torch.testing.assert_close(got, want)


def test_burn_in_and_eval_mode_are_batch_norm():
    conv, layer, batches = setting('3x3', burnin_iters=3)
    plain = nn.BatchNorm2d(6).double()
    plain.load_state_dict(layer.state_dict())
    for batch in batches:
        out, expected = conv_norm(conv, layer, batch), plain(conv(batch))
        direction = torch.randn_like(out)
        got, want = (torch.autograd.grad(o, conv.weight, direction)[0] for o in (out, expected))
        torch.testing.assert_close(got, want)
    torch.testing.assert_close(conv_norm(conv, layer.eval(), batches[0]), plain.eval()(conv(batches[0])))


def test_through_autograd_it_is_the_same():
    conv, layer, batches = setting('strided, biased')
    same = copy.deepcopy(layer)
    for batch in batches:
        outs = [conv_norm(conv, layer, batch), same(conv(batch), conv.weight)]
        direction = torch.randn_like(outs[0])
        got, want = (torch.autograd.grad(out, conv.weight, direction)[0] for out in outs)
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
        with torch.no_grad():
            conv.weight.add_(torch.randn_like(conv.weight) * 0.02)


def test_it_has_no_part_along_the_weight():
    """As BatchNorm's has none, and unlike the paper's: a larger weight gives the same output."""
    for full in (True, False):
        conv, layer, batches = setting('3x3', full, eps=1e-12)
        for batch in batches:
            out = conv_norm(conv, layer, batch)
        (gradient,) = torch.autograd.grad(out, conv.weight, torch.randn_like(out))
        along = (gradient * conv.weight).flatten(1).sum(1).abs().max()
        assert along < 1e-9 if full else along > 1


@pytest.mark.parametrize('reentrant', [True, False])
def test_activation_checkpointing_gives_the_same_gradient(reentrant):
    conv, layer, batches = setting('3x3')
    again = copy.deepcopy(layer)
    for batch in batches:
        x = batch.clone().requires_grad_()
        out = conv_norm(conv, layer, x)
        saved = torch.utils.checkpoint.checkpoint(lambda x: conv_norm(conv, again, x), x, use_reentrant=reentrant)
        direction = torch.randn_like(out)
        grads = []
        for o in (out, saved):
            conv.weight.grad = None
            o.backward(direction)
            grads.append(conv.weight.grad)
        torch.testing.assert_close(*grads)
        with torch.no_grad():
            conv.weight.add_(torch.randn_like(conv.weight) * 0.02)
    assert torch.equal(layer.history.values, again.history.values)


def test_frozen_weights_and_naive_pooling_have_nothing_to_follow():
    conv, layer, batches = setting('3x3', rho=0.0)
    _, paper, _ = setting('3x3', full=False, rho=0.0)
    for batch in batches:
        outs = [conv_norm(conv, norm, batch) for norm in (layer, paper)]
    direction = torch.randn_like(outs[0])
    got, want = (torch.autograd.grad(out, conv.weight, direction)[0] for out in outs)
    assert torch.equal(got, want)
    conv.weight.requires_grad = False
    conv_norm(conv, layer, batches[0]).sum().backward()
    assert layer.bias.grad is not None and conv.weight.grad is None
