"""`pack`: convolutions of inference in one oneDNN call each."""

import copy
import pickle

import pytest
import torch
from factories import batch, small_cfg
from torch import nn

from mmdet.layers import ConvModule, build_norm_layer, conv_norm, pack
from mmdet.layers.packed import PackedConv2d, PackedLinear, fold_behind
from mmdet.registry import MODELS


def near(got, expected, scale=1e-5):
    torch.testing.assert_close(got.float(), expected.float(), rtol=0, atol=scale * expected.abs().max().item())


def pair(kind='BN', bias=False, **conv):
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Conv2d(8, 16, 3, bias=bias, **conv), build_norm_layer(dict(type=kind), 16)[1].eval()])
    for tensor in (model[1].weight, model[1].bias, model[1].running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(model[1].running_var, 0.5, 2)
    return model, torch.randn(2, 8, 13, 10)


@pytest.mark.parametrize('kind', ['BN', 'SyncBN', 'CBN'])
@pytest.mark.parametrize('conv', [{}, dict(stride=2, padding=1, bias=True), dict(groups=2), dict(dilation=2)], ids=str)
@torch.no_grad()
def test_one_call_is_convolution_norm_sum_and_relu(kind, conv):
    (conv, norm), x = pair(kind, **conv)
    plain = norm(conv(x))
    added = torch.randn_like(plain)
    pack(conv)
    assert type(conv) is PackedConv2d
    near(conv_norm(conv, norm, x), plain)
    near(conv_norm(conv, norm, x, relu=True), plain.relu())
    near(conv_norm(conv, norm, x, added), plain + added)
    out = conv_norm(conv, norm, x, added, relu=True)
    near(out, (plain + added).relu())
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(out, plain)  # the convolution's output was never written
    with torch.inference_mode():
        near(conv_norm(conv, norm, x), plain)


@torch.no_grad()
def test_a_spare_sum_lends_its_memory():
    (conv, norm), x = pair(padding=1)
    pack(conv)
    plain = norm(nn.Conv2d.forward(conv, x))
    added = torch.randn_like(plain).to(memory_format=torch.channels_last)
    kept = added.clone()
    out = conv_norm(conv, norm, x, added, relu=True)
    assert out.data_ptr() != added.data_ptr() and torch.equal(added, kept)
    out = conv_norm(conv, norm, x, added, relu=True, spare=True)
    assert out.data_ptr() == added.data_ptr()
    near(out, (plain + kept).relu())
    near(conv_norm(conv, norm, x, kept.contiguous(), spare=True), plain + kept)


@torch.no_grad()
def test_what_a_hook_keeps_of_a_residual_block_is_not_overwritten():
    torch.manual_seed(0)
    model = MODELS.build(small_cfg('mask_rcnn')).eval().backbone
    block, seen = model.layer2[0], []
    x = torch.randn(1, 3, 64, 64)
    block.downsample[-1].register_forward_hook(lambda module, inputs, output: seen.append((output, output.clone())))
    plain = model(x)
    pack(model)
    for got, expected in zip(model(x), plain):
        near(got, expected)
    (_, shortcut), (kept, then) = seen
    assert torch.equal(kept, then)
    near(kept, shortcut)


@torch.no_grad()
def test_weights_that_change_are_packed_anew():
    (conv, norm), x = pair()
    pack(conv)
    conv_norm(conv, norm, x)
    for change in (lambda: conv.weight.mul_(2), lambda: norm.running_mean.add_(1), lambda: norm.bias.zero_(),
                   lambda: norm.load_state_dict({k: v + 1 for k, v in norm.state_dict().items()}),
                   lambda: setattr(conv, 'weight', nn.Parameter(conv.weight + 1))):  # fmt: skip
        change()
        near(conv_norm(conv, norm, x), norm(nn.Conv2d.forward(conv, x)))
    norm.train()
    assert conv_norm(conv, norm, x).mean().isclose(norm.bias.mean(), atol=1e-5)  # the batch's own statistics


def test_gradients_and_hooks_are_as_before():
    (conv, norm), x = pair()
    expected = torch.autograd.grad(conv_norm(conv, norm, x).sum(), conv.weight)[0]
    pack(conv)
    assert torch.equal(torch.autograd.grad(conv_norm(conv, norm, x).sum(), conv.weight)[0], expected)
    seen = []
    norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        conv_norm(conv, norm, x)
    assert len(seen) == 1
    block, seen = pack(ConvModule(8, 8, 3)), []
    block.activate.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        block(x)
    assert len(seen) == 1


@torch.no_grad()
def test_empty_batches_linear_layers_and_copies():
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
    x = torch.randn(3, 4, 6, 6)
    plain = model(x)
    pack(model)
    assert type(model[3]) is PackedLinear
    near(model(x), plain)
    assert model(x[:0]).shape == (0, 5)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        near(again(x), plain)
    assert list(model.state_dict()) == ['0.weight', '0.bias', '3.weight', '3.bias']
    with torch.autocast('cpu', torch.bfloat16):
        out = model(x)
    assert out.dtype == torch.bfloat16
    near(out, plain, 0.02)
    near(model(x), plain)  # float32 again
    model.double()
    assert model(x.double()).dtype == torch.float64


@pytest.mark.parametrize('kind', ['mask_rcnn', 'retinanet'])
def test_detections_move_in_the_last_digits(kind):
    torch.manual_seed(0)
    model = MODELS.build(small_cfg(kind)).eval()
    data, found = batch([2, 3]), []
    for packed in (False, True):
        model = pack(model) if packed else model
        with torch.no_grad():
            samples = model(**model.data_preprocessor(copy.deepcopy(data), False), mode='predict')
        found.append([sample.pred_instances for sample in samples])
    assert any(type(module) is PackedConv2d for module in model.modules())
    for plain, fast in zip(*found):
        assert len(plain) == len(fast)
        torch.testing.assert_close(fast.scores, plain.scores, rtol=0, atol=1e-4)
        torch.testing.assert_close(fast.bboxes, plain.bboxes, rtol=0, atol=1e-2)


class Doubled(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


@torch.no_grad()
def test_a_norm_that_does_more_is_not_folded():
    (conv, _), x = pair()
    for norm in Doubled(16).eval(), nn.BatchNorm2d(16, affine=False).eval(), nn.GroupNorm(4, 16):
        expected = norm(conv(x))
        fold_behind(pack(conv), norm)
        near(norm(conv(x)), expected)
        assert not conv.behind


@torch.no_grad()
def test_a_norm_finds_its_work_done_once():
    """Another input than what the convolution gave last is normalised."""
    (conv, norm), x = pair()
    plain = norm(conv(x))
    again = norm(plain)
    fold_behind(pack(conv), norm)
    near(norm(norm(conv(x))), again)
    conv(x)
    near(norm(plain), again)
    norm.train()
    assert torch.equal(conv(x), conv.fused(x))
