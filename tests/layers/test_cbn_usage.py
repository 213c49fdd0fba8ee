"""CBN where people put it: mixed precision, compilation, checkpointing, EMA, converted models."""

import copy
import inspect
import warnings

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmdet.layers import (
    ConvModule,
    CrossIterBatchNorm2d,
    cbn_state,
    convert_cbn,
    load_cbn_state,
    plan_cbn,
    revert_cbn,
    set_cbn_epoch,
)
from mmdet.registry import MODELS

CBN = dict(type='CBN', buffer_num=3)


def nudge(module, amount=0.02):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * amount)


def warmed_up(device='cpu', steps=3, **options):
    torch.manual_seed(0)
    block = ConvModule(4, 8, 3, padding=1, norm_cfg={**CBN, **options}, act_cfg=None).to(device)
    for _ in range(steps):
        block(torch.randn(2, 4, 10, 10, device=device))
        nudge(block)
    return block


def snapshot(norm):
    history = None if norm.history is None else {k: torch.as_tensor(v) for k, v in norm.history.state().items()}
    return norm.steps, {k: v.clone() for k, v in norm.state_dict().items()}, history


def assert_same(before, after):
    assert before[0] == after[0]
    for one, other in zip(before[1:], after[1:]):
        assert (one is None) == (other is None)
        for key in one or {}:
            assert torch.equal(one[key], other[key]), key


# -- what leaves the state alone ----------------------------------------------------------------------


@pytest.mark.parametrize('options', [{}, dict(affine=False), dict(track_running_stats=False)])
def test_empty_input_is_connected_and_leaves_the_state_untouched(device, options):
    block = warmed_up(device, **options)
    before = snapshot(block.bn)
    x = torch.zeros(0, 4, 7, 7, device=device, requires_grad=True)
    out = block(x)
    assert out.shape == (0, 8, 7, 7)
    out.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in block.parameters())
    assert_same(before, snapshot(block.bn))


def test_no_grad_in_train_mode_leaves_the_history_untouched():
    block = warmed_up()
    x = torch.randn(2, 4, 10, 10)
    before = snapshot(block.bn)
    with torch.no_grad():
        silent = block(x)
    after = snapshot(block.bn)
    assert_same((before[0], None, before[2]), (after[0], None, after[2]))
    assert torch.equal(silent, block(x))  # and it normalises by the same history


def test_eval_mode_is_batch_norm():
    block = warmed_up().eval()
    plain = nn.BatchNorm2d(8).eval()
    plain.load_state_dict(block.bn.state_dict())
    x = torch.randn(2, 4, 10, 10)
    before = snapshot(block.bn)
    with torch.no_grad():
        assert torch.equal(block(x), plain(block.conv(x)))
    torch.testing.assert_close(block(x), plain(block.conv(x)), rtol=1e-5, atol=1e-6)  # folded into the convolution
    assert_same(before, snapshot(block.bn))
    untracked = CrossIterBatchNorm2d(8, track_running_stats=False).eval()
    want = nn.BatchNorm2d(8, track_running_stats=False).eval()(block.conv(x))
    assert torch.equal(untracked(block.conv(x)), want)


def test_momentum_none_is_a_cumulative_average():
    torch.manual_seed(0)
    conv, norm, plain = nn.Conv2d(3, 8, 3), CrossIterBatchNorm2d(8, momentum=None), nn.BatchNorm2d(8, momentum=None)
    for _ in range(4):
        y = conv(torch.randn(2, 3, 8, 8))
        norm(y, conv.weight), plain(y)
    torch.testing.assert_close(norm.running_var, plain.running_var)
    torch.testing.assert_close(norm.running_mean, plain.running_mean)


# -- burn-in without a Runner -------------------------------------------------------------------------


def test_burn_in_iterations_are_batch_norm_and_then_end():
    torch.manual_seed(0)
    block = ConvModule(3, 8, 3, norm_cfg=dict(type='CBN', burnin_iters=3), act_cfg=None)
    plain = nn.BatchNorm2d(8)
    for step in range(6):
        x = torch.randn(2, 3, 8, 8)
        same = torch.allclose(block(x), plain(block.conv(x)), atol=1e-6)
        assert same == (step <= 3)  # at step 3 the history is still empty
        assert block.bn.burning_in == (step < 2)


def test_burn_in_epochs_need_somebody_to_count_them():
    block = ConvModule(3, 8, 3, norm_cfg=dict(type='CBN', burnin=2))
    with pytest.warns(UserWarning, match='set_cbn_epoch'):
        block(torch.randn(2, 3, 8, 8))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for epoch in range(4):
            set_cbn_epoch(block, epoch)
            assert block.bn.burning_in == (epoch < 2)
            block(torch.randn(2, 3, 8, 8))
    assert block.bn.history.filled == 2


# -- copies, devices, state ---------------------------------------------------------------------------


def test_state_dict_is_batch_norms_and_loads_into_it():
    block = warmed_up()
    keys = ['weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked']
    assert list(block.bn.state_dict()) == keys
    nn.BatchNorm2d(8).load_state_dict(block.bn.state_dict())
    assert [name for name, _ in block.bn.named_buffers()] == keys[2:]


def test_published_weights_without_num_batches_tracked_load():
    state = {k: v for k, v in nn.BatchNorm2d(8).state_dict().items() if k != 'num_batches_tracked'}
    CrossIterBatchNorm2d(8).load_state_dict(state)


def test_deepcopy_has_a_history_of_its_own():
    block = warmed_up()
    copied = copy.deepcopy(block)
    before = snapshot(block.bn)
    x = torch.randn(2, 4, 10, 10)
    out = copied(x)
    assert_same(before, snapshot(block.bn))
    assert torch.equal(out, block(x)) and block.bn._key != copied.bn._key


def test_ema_of_a_model_with_cbn():
    block = warmed_up()
    ema = torch.optim.swa_utils.AveragedModel(block, use_buffers=True)
    block(torch.randn(2, 4, 10, 10)).sum().backward()
    ema.update_parameters(block)
    assert ema.eval()(torch.randn(1, 4, 10, 10)).isfinite().all()


def test_state_travels_through_a_file(tmp_path):
    block, other = warmed_up(derivative_fraction=0.25), warmed_up(steps=0, derivative_fraction=0.25)
    torch.save(cbn_state(block), tmp_path / 'cbn.pth')
    other.load_state_dict(block.state_dict())
    load_cbn_state(other, torch.load(tmp_path / 'cbn.pth', weights_only=True))
    assert_same(snapshot(block.bn), snapshot(other.bn))
    for _ in range(4):
        x = torch.randn(2, 4, 10, 10)
        assert torch.equal(block(x), other(x))
    with pytest.raises(ValueError, match='does not fit'):
        load_cbn_state(block, {})
    with pytest.raises(ValueError, match='l0, l1, l2 and 96 more$'):  # a line, however many layers a model has
        load_cbn_state(nn.Module(), {name: {} for name in ('l0', 'l1', 'l2', *(f'm{number}' for number in range(96)))})


def test_saved_state_does_not_change_with_training():
    block = warmed_up()
    state = cbn_state(block)
    kept = state['bn']['window']['dvar'].clone()
    for _ in range(3):
        block(torch.randn(2, 4, 10, 10))
    assert torch.equal(kept, state['bn']['window']['dvar'])


@pytest.mark.cuda
def test_history_moves_with_the_layer():
    block = warmed_up().cuda()
    assert block.bn.history.dvar.is_cuda
    assert block(torch.randn(2, 4, 10, 10, device='cuda')).isfinite().all()


def test_double_moves_the_history_too():
    block = warmed_up().double()
    assert block.bn.history.dvar.dtype == torch.float64
    assert block(torch.randn(2, 4, 10, 10, dtype=torch.float64)).isfinite().all()


def test_half_precision_model_keeps_a_float32_history():
    block = warmed_up().bfloat16()
    assert block.bn.history.dvar.dtype == torch.float32
    for _ in range(2):
        out = block(torch.randn(2, 4, 10, 10, dtype=torch.bfloat16))
        out.sum().backward()
        assert out.dtype == block.bn.weight.grad.dtype == torch.bfloat16 and out.isfinite().all()


def test_history_of_another_size_starts_empty():
    block = warmed_up()
    other = warmed_up(steps=0, buffer_num=5)
    load_cbn_state(other, cbn_state(block))
    assert other.bn.history is None and other.bn.steps == 3
    for _ in range(6):
        other(torch.randn(2, 4, 10, 10))
    assert other.bn.history.filled == 5


def test_sync_bn_conversion_leaves_cbn_alone():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), CrossIterBatchNorm2d(8), nn.BatchNorm2d(8))
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert type(model[1]) is CrossIterBatchNorm2d and type(model[2]) is nn.SyncBatchNorm


# -- how people train ---------------------------------------------------------------------------------


@pytest.mark.parametrize('path', ['autograd', 'closed form'])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('scale', [1.0, 1e4])
def test_autocast_keeps_float32_statistics_and_stays_finite(device, dtype, path, scale):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, 3, padding=1, bias=False).to(device)
    norm, exact = CrossIterBatchNorm2d(8).to(device), CrossIterBatchNorm2d(8).to(device)
    with torch.no_grad():  # activations around ``scale`` on both sides of the convolution
        conv.weight.div_(conv.weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1))
    for _ in range(4):
        x = torch.randn(2, 4, 16, 16, device=device) * scale
        exact_out = exact.after(conv, x)
        with torch.autocast(device, dtype):
            out = norm(conv(x), conv.weight) if path == 'autograd' else norm.after(conv, x)
        assert out.dtype == dtype
        out.float().square().mean().backward()
        for tensor in (out, conv.weight.grad, norm.weight.grad, norm.running_var, *vars(norm.history).values()):
            assert torch.as_tensor(tensor).isfinite().all()
        assert norm.history.dvar.dtype == norm.running_mean.dtype == torch.float32
        torch.testing.assert_close(out.float(), exact_out, rtol=0.05, atol=0.05)
        a, b = norm.history.dvar.flatten(), exact.history.dvar.flatten()
        assert torch.cosine_similarity(a, b, dim=0) > 0.99
        nudge(conv, 0.003)
    torch.testing.assert_close(norm.running_var, exact.running_var, rtol=0.02, atol=0)


def test_large_mean_does_not_drown_the_variance():
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, 3, padding=1, bias=False)
    one, other = CrossIterBatchNorm2d(8), CrossIterBatchNorm2d(8).double()
    for _ in range(4):
        x = torch.randn(2, 4, 16, 16) + 1000
        inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))
        out = one.after(conv, x)[inner]
        want = other.after(copy.deepcopy(conv).double(), x.double())[inner]
        torch.testing.assert_close(out.double(), want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('fraction', [1.0, 0.25])
def test_channels_last(device, fraction):
    torch.manual_seed(0)
    block = ConvModule(4, 8, 3, padding=1, norm_cfg={**CBN, 'derivative_fraction': fraction}).to(device)
    last = copy.deepcopy(block).to(memory_format=torch.channels_last)
    for _ in range(4):
        x = torch.randn(2, 4, 12, 12, device=device)
        out, out_last = block(x), last(x.to(memory_format=torch.channels_last))
        assert out_last.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(out, out_last, rtol=1e-4, atol=1e-5)
        out.sum().backward(), out_last.sum().backward()
    torch.testing.assert_close(block.conv.weight.grad, last.conv.weight.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('reentrant', [True, False])
def test_activation_checkpointing_gives_the_same_numbers_and_state(reentrant):
    plain, saving = warmed_up(), warmed_up()
    for _ in range(5):
        x = torch.randn(2, 4, 10, 10, requires_grad=True)
        again = x.detach().clone().requires_grad_()
        out, out_saving = plain(x), checkpoint(saving, again, use_reentrant=reentrant)
        assert torch.equal(out, out_saving)
        direction = torch.randn_like(out)
        (out * direction).sum().backward()
        (out_saving * direction).sum().backward()
        torch.testing.assert_close(x.grad, again.grad)
        torch.testing.assert_close(plain.conv.weight.grad, saving.conv.weight.grad)
        assert_same(snapshot(plain.bn), snapshot(saving.bn))
        nudge(plain)
        saving.load_state_dict(plain.state_dict())


def test_activation_checkpointing_may_repeat_a_forward_twice():
    plain, saving = warmed_up(), warmed_up()
    x = torch.randn(2, 4, 10, 10)
    out, out_saving = plain(x), checkpoint(saving, x, use_reentrant=False)
    for _ in range(2):
        out.sum().backward(retain_graph=True)
        out_saving.sum().backward(retain_graph=True)
    torch.testing.assert_close(plain.conv.weight.grad, saving.conv.weight.grad)
    assert_same(snapshot(plain.bn), snapshot(saving.bn))


@pytest.mark.parametrize('reentrant', [True, False])
@pytest.mark.parametrize('together', [True, False])
def test_a_layer_called_several_times_cannot_be_checkpointed(reentrant, together):
    """It cannot be known which of its forwards is repeated."""
    block, inputs = warmed_up(), [torch.randn(2, 4, 10, 10, requires_grad=True) for _ in range(2)]
    if together:
        outs = checkpoint(lambda *inputs: tuple(block(x) for x in inputs), *inputs, use_reentrant=reentrant)
    else:
        outs = [checkpoint(block, x, use_reentrant=reentrant) for x in inputs]
    with pytest.raises(ValueError, match='repeats a forward that is not the last one'):
        sum(out.sum() for out in outs).backward()


def test_gradient_accumulation_pools_the_micro_batches():
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 8, 3, bias=False).double(), CrossIterBatchNorm2d(8, buffer_num=3).double()
    micro = [torch.randn(1, 3, 8, 8, dtype=torch.float64) for _ in range(4)]
    outs = [norm.after(conv, x) for x in micro]
    together = nn.BatchNorm2d(8).double()(conv(torch.cat(micro)))
    torch.testing.assert_close(outs[-1], together[-1:])


def test_layer_shared_over_levels_counts_every_call():
    """Documented: each call is an entry, so that the history spans the levels of one iteration first."""
    torch.manual_seed(0)
    block = ConvModule(4, 4, 3, padding=1, norm_cfg=CBN).double()
    levels = [torch.randn(1, 4, s, s, dtype=torch.float64) for s in (16, 8, 4, 2)]
    outs = [block(level) for level in levels]
    sum(out.sum() for out in outs).backward()
    assert block.bn.history.filled == 3 and block.bn.steps == 4
    y = block.conv(levels[3])
    means = torch.stack([block.conv(level).mean((0, 2, 3)) for level in levels])
    seconds = torch.stack([block.conv(level).square().mean((0, 2, 3)) for level in levels])
    var = seconds.mean(0) - means.mean(0).square()  # equal weight whatever the level's size
    want = (y - means.mean(0).view(1, -1, 1, 1)) / (var + 1e-5).sqrt().view(1, -1, 1, 1)
    torch.testing.assert_close(outs[3], want.relu())


@pytest.mark.parametrize('frozen', ['conv', 'affine', 'both'])
def test_frozen_parts(frozen):
    torch.manual_seed(0)
    block = ConvModule(4, 8, 3, norm_cfg={**CBN, 'requires_grad': frozen == 'conv'})
    block.conv.weight.requires_grad = frozen == 'affine'
    for _ in range(5):
        x = torch.randn(2, 4, 8, 8, requires_grad=True)
        block(x).square().sum().backward()
        assert x.grad.isfinite().all()
    assert (block.conv.weight.grad is None) == (frozen != 'affine')
    assert (block.bn.weight.grad is None) == (frozen != 'conv')
    norm = CrossIterBatchNorm2d(8)  # a frozen weight has no graph, and needs none
    with torch.no_grad():
        y = block.conv(x)
    weight = block.conv.weight.detach()
    assert norm(y, weight).isfinite().all() and norm.history.filled == 1


def test_subclasses_that_change_the_convolution_go_through_autograd():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return self._conv_forward(x, w, None)

    torch.manual_seed(0)
    conv = Standardised(4, 8, 3, bias=False).double()
    one, other = CrossIterBatchNorm2d(8).double(), CrossIterBatchNorm2d(8).double()
    for _ in range(4):
        x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
        torch.testing.assert_close(one.after(conv, x), other(conv(x), conv.weight), rtol=1e-10, atol=1e-10)
        nudge(conv)


@pytest.mark.parametrize('padding_mode', ['reflect', 'circular'])
def test_other_paddings_go_through_autograd(padding_mode):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, 3, padding=1, padding_mode=padding_mode, bias=False).double()
    one, other = CrossIterBatchNorm2d(8).double(), CrossIterBatchNorm2d(8).double()
    for _ in range(3):
        x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
        torch.testing.assert_close(one.after(conv, x), other(conv(x), conv.weight), rtol=1e-10, atol=1e-10)
        nudge(conv)


@pytest.mark.parametrize(
    'options', [{}, dict(derivative_fraction=0.25), dict(burnin_iters=4), dict(full_gradient=True)], ids=str
)
def test_compile_without_graph_break_or_recompilation(options):
    torch._dynamo.reset()
    eager = ConvModule(4, 8, 3, padding=1, norm_cfg={**CBN, **options})
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    twin = copy.deepcopy(eager)
    compiled = torch.compile(twin, backend=count, fullgraph=True)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05) for m in (eager, twin)]
    torch.manual_seed(1)
    for _ in range(10):
        x = torch.randn(2, 4, 10, 10)
        outs = [m(x) for m in (eager, compiled)]
        torch.testing.assert_close(*outs)
        for out, optimizer in zip(outs, optimizers):
            optimizer.zero_grad()
            out.square().mean().backward()
            optimizer.step()
    assert len(graphs) == 1
    assert eager.bn.steps == twin.bn.steps == 10
    torch.testing.assert_close(eager.bn.history.dvar, twin.bn.history.dvar)
    torch.testing.assert_close(eager.bn.running_var, twin.bn.running_var)


@pytest.mark.slow
@pytest.mark.parametrize('donated', [False, True])
def test_derivatives_by_autograd_stay_outside_a_compiled_graph(donated):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 4, 3, bias=False)
            self.norms = nn.ModuleList([CrossIterBatchNorm2d(8), CrossIterBatchNorm2d(4)])

        def forward(self, x):
            x = self.norms[0](self.first(x.sin()), self.first.weight).relu()
            return self.norms[1](self.second(x), self.second.weight)

    torch._dynamo.reset()
    torch.manual_seed(0)
    eager = Two()
    twin = copy.deepcopy(eager)
    compiled = torch.compile(twin, backend='aot_eager')
    with torch._functorch.config.patch(donated_buffer=donated):
        for step in range(4):
            x = torch.randn(2, 3, 12, 12)
            outs = [eager(x), compiled(x)]
            torch.testing.assert_close(*outs)
            for out in outs:
                out.square().sum().backward()
            torch.testing.assert_close(eager.first.weight.grad, twin.first.weight.grad, rtol=1e-4, atol=1e-4)
            for module in (eager, twin):
                torch.manual_seed(step)
                nudge(module)


@pytest.mark.slow
def test_compile_with_inductor():
    torch._dynamo.reset()
    eager = convert_cbn(nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU()))
    twin = copy.deepcopy(eager)
    compiled = torch.compile(twin)
    for _ in range(6):
        x = torch.randn(2, 4, 10, 10)
        outs = [eager(x), compiled(x)]
        torch.testing.assert_close(*outs, rtol=1e-4, atol=1e-5)
        for out in outs:
            out.square().sum().backward()
        torch.testing.assert_close(eager[0].weight.grad, twin[0].weight.grad, rtol=1e-3, atol=1e-4)


# -- any model ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'name, pairs',
    [('resnet18', 20), ('resnet50', 53), ('mobilenet_v2', 52), ('vgg11_bn', 8), ('shufflenet_v2_x0_5', 56)],
)
def test_convert_and_revert_torchvision_models(name, pairs):
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(num_classes=4)
    before = copy.deepcopy(model)
    assert convert_cbn(model, buffer_num=2) is model
    layers = [m for m in model.modules() if isinstance(m, CrossIterBatchNorm2d)]
    assert len(layers) == pairs
    assert model.state_dict().keys() == before.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters()))
    x = torch.randn(2, 3, 64, 64)
    model(x).sum().backward()
    model(x).sum().backward()
    assert all(layer.history.filled == 2 and layer._call is None for layer in layers)
    model.eval()
    with torch.no_grad():
        kept = model(x)
        assert torch.equal(kept, revert_cbn(model)(x))
    assert not any(isinstance(m, CrossIterBatchNorm2d) or m._forward_hooks for m in model.modules())
    before.load_state_dict(model.state_dict())
    assert torch.equal(before.eval()(x), kept)


@pytest.mark.parametrize('options', [{}, dict(with_cp=True), dict(frozen_stages=1)], ids=str)
def test_convert_this_toolboxs_backbone(options):
    torch.manual_seed(0)
    model = MODELS.build(dict(type='ResNet', depth=50, base_channels=8, norm_eval=False, init_cfg=None, **options))
    plan = plan_cbn(model)
    assert len(plan.pairs) == 53 and not plan.left
    convert_cbn(model).train()
    x = torch.randn(2, 3, 64, 64)
    for _ in range(2):
        sum(level.sum() for level in model(x)).backward()
    trained = [m for m in model.modules() if isinstance(m, CrossIterBatchNorm2d) and m.training]
    assert len(trained) == (53 if 'frozen_stages' not in options else 42)
    assert all(layer.history.filled == layer.steps == 2 and layer._call is None for layer in trained)
    keys = model.state_dict().keys()
    with torch.no_grad():
        before = model.eval()(x)[-1]
        assert torch.equal(before, revert_cbn(model)(x)[-1]) and model.state_dict().keys() == keys


def test_converted_model_equals_conv_modules():
    torch.manual_seed(0)
    block = ConvModule(3, 8, 3, norm_cfg=CBN, act_cfg=None)
    model = nn.Sequential(copy.deepcopy(block.conv), nn.BatchNorm2d(8))
    convert_cbn(model)
    for _ in range(4):
        x = torch.randn(2, 3, 8, 8)
        assert torch.equal(model(x), block(x))


@pytest.mark.skipif('bias' not in inspect.signature(nn.BatchNorm2d).parameters, reason='this torch has no such norm')
def test_converted_norm_without_a_shift():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, bias=False))
    keys = list(model.state_dict())
    for _ in range(2):
        convert_cbn(model)(torch.randn(2, 3, 8, 8)).square().sum().backward()
        revert_cbn(model)
    assert model[1].bias is None and model[1].weight.grad.any() and list(model.state_dict()) == keys


def test_converted_model_can_be_copied_after_a_step():
    model = convert_cbn(torchvision.models.resnet18(num_classes=4))
    x = torch.randn(2, 3, 32, 32)
    model(x).sum().backward()
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), model(x))
    assert twin.bn1._call is None and twin.bn1.history is not model.bn1.history


class Branching(nn.Module):
    """torch.fx cannot trace it; the norms stand in three different places."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.pre, self.conv2 = nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.bn1(self.conv1(x))
        if x.sum() > 0:
            x = x * 2
        return self.conv2(self.pre(self.block(x)))


def test_fallback_by_module_order_and_report():
    model = Branching()
    plan = plan_cbn(model)
    assert plan.pairs == {'bn1': 'conv1', 'block.1': 'block.0'}
    assert list(plan.left) == ['pre'] and 'Conv2d' in plan.left['pre']
    assert '2 of 3' in str(plan) and 'pre stays BatchNorm2d' in str(plan)
    convert_cbn(model)(torch.randn(2, 3, 8, 8)).sum().backward()
    assert type(model.pre) is nn.BatchNorm2d


def test_norm_paired_with_the_wrong_convolution_is_noticed():
    class Crossed(nn.Module):
        def __init__(self):
            super().__init__()
            self.other, self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

        def forward(self, x):
            second = self.conv(x)
            return self.bn(self.other(x)) + (second if x.sum() > 0 else -second)

    model = convert_cbn(Crossed())
    with pytest.raises(ValueError, match='did not return its input'):
        model(torch.randn(2, 3, 8, 8))


def test_nothing_to_convert_is_said():
    with pytest.raises(ValueError, match='no BatchNorm2d of Linear follows'):
        convert_cbn(nn.Linear(3, 3))


def test_one_conv_with_several_norms_is_left_alone():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.a, self.b = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8)

        def forward(self, x):
            y = self.conv(x)
            return self.a(y) + self.b(y)

    assert plan_cbn(Two()).pairs == {}


def test_a_norm_that_holds_its_activation_keeps_it():
    """As timm's BatchNormAct2d does."""

    class NormAct(nn.BatchNorm2d):
        def __init__(self, channels):
            super().__init__(channels)
            self.drop, self.act = nn.Identity(), nn.ReLU()

        def forward(self, x):
            return self.act(self.drop(super().forward(x)))

    plain = nn.Sequential(nn.Conv2d(3, 4, 1), NormAct(4), nn.Conv2d(4, 4, 3), NormAct(4))
    cbn = convert_cbn(copy.deepcopy(plain), buffer_num=2)
    assert list(cbn.state_dict()) == list(plain.state_dict())
    x = torch.randn(2, 3, 8, 8)
    back = revert_cbn(copy.deepcopy(cbn))
    for mode in (True, False):
        for model in (plain, cbn, back):
            model.train(mode)
        expected = plain(x)  # the first training iteration has no history
        torch.testing.assert_close(cbn(x), expected)
        torch.testing.assert_close(back(x), expected)
        assert (expected == 0).any()
