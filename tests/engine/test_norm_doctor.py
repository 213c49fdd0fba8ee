"""What `mmdet norm-doctor` measures, against hand computations and the literal large batch."""

import json

import pytest
import torch
from torch import nn

from mmdet.config.errors import UserError
from mmdet.engine.norm_doctor import (
    NORMS,
    POOLED,
    Candidates,
    advice,
    cbn_of,
    check_places,
    examine,
    find_truth,
    normed_blocks,
    put_norm,
    train,
    using,
)
from mmdet.layers import ConvModule
from mmdet.visualization.norms import draw_norms


def network(layers: int = 1) -> nn.Sequential:
    """Blocks of convolution and CBN, and a convolution behind them."""
    torch.manual_seed(0)
    cbn = dict(type='CBN', buffer_num=3, full_gradient=True)
    blocks = [ConvModule(3 if i == 0 else 8, 8, 3, padding=1, norm_cfg=cbn) for i in range(layers)]
    net = nn.Sequential(*blocks, nn.Conv2d(8, 2, 1)).double()
    for block in blocks:
        nn.init.uniform_(block.norm.weight, 0.5, 1.5)
        nn.init.uniform_(block.norm.bias, -0.5, 0.5)
    return net


def noise(count: int) -> list:
    """Batches of two images, each image of its own mean and spread."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(count):
        scale, shift = torch.rand(2, 2, 3, 1, 1, generator=generator, dtype=torch.float64)
        x = torch.randn(2, 3, 6, 6, generator=generator, dtype=torch.float64) * (scale + 0.2) + 2 * shift
        found.append((x, torch.randn(2, 2, 6, 6, generator=generator, dtype=torch.float64)))
    return found


def squared(net: nn.Module):
    return lambda batch, number: (net(batch[0]) - batch[1]).square().mean()


def trained(net: nn.Module, batches: list, lr: float) -> Candidates:
    candidates, loss = Candidates(normed_blocks(net)), squared(net)
    optimizer = torch.optim.SGD(net.parameters(), lr)

    def step(batch, iteration):
        optimizer.zero_grad()
        value = loss(batch, iteration)
        value.backward()
        optimizer.step()
        return value.item()

    train(step, batches, len(batches), candidates)
    return candidates


def by_hand(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows = y.transpose(0, 1).flatten(1)
    mean = torch.stack([row.sum() / len(row) for row in rows])
    return mean, torch.stack([((row - m) ** 2).sum() / len(row) for row, m in zip(rows, mean)])


def test_batch_norms_error_is_that_of_a_hand_computation():
    net, batches = network(), noise(12)
    candidates = trained(net, batches[:4], 0.05)
    report = examine(candidates, squared(net), batches[4:10], batches[10:])
    true_mean, true_var = by_hand(net[0].conv(torch.cat([x for x, _ in batches[4:10]])))
    of_mean, of_var = [], []
    for x, _ in batches[10:]:
        mean, var = by_hand(net[0].conv(x))
        of_mean.append(((mean - true_mean).abs() / true_var.sqrt()).median().item())
        of_var.append(((var - true_var).abs() / true_var).median().item())
    layer = report['layers']['0']
    assert layer['errors']['BN'] == pytest.approx(dict(mean=sum(of_mean) / 2, var=sum(of_var) / 2), rel=1e-9)
    assert layer['M'] == 2 * 6 * 6 and layer['channels'] == 8 and layer['calls'] == 1
    assert layer['errors']['BN']['var'] > 0.05  # there is something to see


def test_pooled_statistics_are_the_truth_where_the_weights_stood_still():
    """Three past batches and the present one are the truth's four; nothing was to compensate for."""
    net, batches = network(), noise(4)
    report = examine(trained(net, batches[:3], 0.0), squared(net), batches, batches[3:])
    layer = report['layers']['0']
    for norm in ('naive', 'CBN', 'CBN full gradient', 'CBN full gradient, 1/16'):
        assert max(layer['errors'][norm].values()) < 1e-12, norm
    assert layer['errors']['BN']['var'] > 0.05


def test_without_a_learning_rate_naive_is_cbn_and_with_one_it_is_not():
    batches, errors = noise(10), {}
    for lr in (0.0, 0.5):
        net = network()
        found = examine(trained(net, batches[:4], lr), squared(net), batches[4:8], batches[8:])['layers']['0']
        errors[lr] = found['errors']
    assert errors[0.0]['naive'] == pytest.approx(errors[0.0]['CBN'], rel=1e-9)
    assert errors[0.5]['naive'] != pytest.approx(errors[0.5]['CBN'], rel=1e-2)


def test_the_gradient_of_the_large_batch_is_the_literal_one():
    """Two layers one behind the other: statistics and gradients of BatchNorm on all images at once."""
    net, batches = network(layers=2), noise(4)
    blocks, loss = normed_blocks(net), squared(net)
    together, gradients = find_truth(blocks, loss, batches, tolerance=1e-13)
    literal = {name: nn.BatchNorm2d(8).double() for name in blocks}
    for name, norm in literal.items():
        norm.weight, norm.bias = blocks[name].norm.weight, blocks[name].norm.bias
    net.zero_grad()
    inputs = {}
    for name, norm in literal.items():
        norm.register_forward_pre_hook(lambda _, args, name=name: inputs.__setitem__(name, args[0]))
    with using(blocks, literal):
        loss(tuple(map(torch.cat, zip(*batches))), 0).backward()
    for name, block in blocks.items():
        torch.testing.assert_close(gradients[name], block.conv.weight.grad, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(together[name].known[0][:2], torch.stack(by_hand(inputs[name].detach())))


def test_a_batch_that_is_the_whole_truth_has_its_gradient():
    net, batches = network(layers=2), noise(5)
    report = examine(trained(net, batches[:4], 0.05), squared(net), batches[4:], batches[4:])
    for layer in report['layers'].values():
        assert layer['cosines']['BN'] == pytest.approx(1, abs=1e-9)
        assert layer['cosines'][POOLED] == pytest.approx(1, abs=1e-9)
        assert layer['cosines']['CBN'] < 1 - 1e-6  # its statistics are those of other batches, too
        assert layer['errors']['BN']['var'] < 1e-9


def test_the_measurement_leaves_weights_and_histories():
    net, batches = network(layers=2), noise(6)
    candidates = trained(net, batches[:4], 0.05)
    weights = {key: value.clone() for key, value in net.state_dict().items()}
    first = examine(candidates, squared(net), batches[4:], batches[:2])
    assert all(torch.equal(weights[key], value) for key, value in net.state_dict().items())
    again = examine(candidates, squared(net), batches[4:], batches[:2])
    assert first['layers'] == again['layers']


def test_the_report_and_its_advice(tmp_path):
    net, batches = network(layers=2), noise(8)
    report = examine(trained(net, batches[:4], 0.05), squared(net), batches[4:6], batches[6:])
    assert json.loads(json.dumps(report)) == report
    assert list(report['layers']) == ['0', '1']
    assert set(report['layers']['0']['errors']) == set(NORMS)
    assert set(report['layers']['0']['cosines']) == set(report['summary']) == {*NORMS, POOLED}
    costs = report['costs']
    assert set(costs) == {*NORMS, 'GN'} and all(one['seconds'] > 0 for one in costs.values())
    assert costs['BN']['stored_bytes'] == 0 < costs['CBN full gradient']['stored_bytes']
    assert costs['BN']['saved_bytes'] > 2 * 8 * 36 * 8 * 2  # two layers' maps at least
    lines = advice(report)
    assert len(lines) == 3 and 'M = 72' in lines[1]
    draw_norms(dict(report, config='tiny.py', batch_size=2, truth_batches=2), tmp_path / 'norms.png')
    assert (tmp_path / 'norms.png').stat().st_size > 5000


@pytest.mark.parametrize('bn, cbn, first', [
    ([0.2, 0.3], [0.2, 0.3], "Take norm_cfg=dict(type='BN') or dict(type='GN', num_groups=16): train both"),
    ([0.2, 0.6], [0.3, 0.2], "Take norm_cfg=dict(type='GN', num_groups=16), not BN. Train dict(type='CBN', full_grad"),
    ([0.2, 0.6], [0.5, 0.2], "Take norm_cfg=dict(type='GN', num_groups=16), not BN: its statistics are poor here, and"),
])  # fmt: skip
def test_what_is_advised(bn, cbn, first):
    """By the worst part of the model, whose layers give their median; 32 groups do not divide 48 channels."""
    layers = {
        f'{part}.{number}.conv': dict(
            M=98.0, channels=channels,
            errors={'BN': dict(var=of_bn + moved), 'CBN full gradient': dict(var=of_cbn + moved)},
        )
        for part, channels, of_bn, of_cbn in zip(['neck', 'roi_head.mask_head'], [256, 48], bn, cbn)
        for number, moved in enumerate([-0.1, 0.0, 9.0])
    }  # fmt: skip
    cost = dict(seconds=1.0, saved_bytes=1, stored_bytes=0)
    report = dict(
        layers=layers, costs=dict.fromkeys(['BN', 'CBN full gradient'], cost),
        summary=dict.fromkeys(['BN', 'CBN full gradient', POOLED], dict(cosine=0.5)),
    )  # fmt: skip
    lines = advice(report)
    assert lines[0].startswith(first)
    worst = 'neck' if cbn[0] > cbn[1] else 'roi_head.mask_head'
    assert f'off most in roi_head.mask_head, by {bn[1]:.1%}; CBN\'s in {worst}, by {max(cbn):.1%}' in lines[1]


def test_a_last_step_that_diverges_ends_in_a_line():
    """Its loss was that of the weights before it."""
    net, batches = network(), noise(3)
    with pytest.raises(UserError, match='the loss is (nan|inf) after the training: a smaller learning rate'):
        examine(trained(net, batches[:1], 1e300), squared(net), batches[1:2], batches[2:])


def test_the_norm_goes_wherever_one_is_taken():
    model = dict(
        type='FasterRCNN',
        backbone=dict(type='ResNet', depth=50),
        neck=dict(type='FPN', in_channels=[1], out_channels=1, num_outs=1, norm_cfg=dict(type='GN', num_groups=2)),
        rpn_head=dict(type='RPNHead'),
        roi_head=dict(type='StandardRoIHead', bbox_head=dict(type='Shared4Conv1FCBBoxHead')),
    )
    norm = cbn_of(model)
    assert norm == dict(type='CBN', full_gradient=True)
    assert put_norm(model, norm) == ['neck', 'roi_head.bbox_head']
    assert model['neck']['norm_cfg'] == model['roi_head']['bbox_head']['norm_cfg'] == norm
    assert 'norm_cfg' not in model['backbone']
    model['neck']['norm_cfg'] = dict(type='CBN', buffer_num=5, burnin=8)
    assert cbn_of(model) == dict(type='CBN', full_gradient=True, buffer_num=5)


def test_nothing_to_examine():
    with pytest.raises(UserError, match='no part of the model'):
        check_places([], {})
    with pytest.raises(UserError, match='roi_head.bbox_head'):
        check_places(['roi_head.bbox_head'], {})
    candidates = Candidates(normed_blocks(network()))
    with pytest.raises(UserError, match='the loss is nan in iteration 1'):
        train(lambda batch, iteration: float('nan'), [None], 1, candidates)
