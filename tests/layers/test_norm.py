"""build_norm_layer, and the layers that take their statistics over processes."""

import contextlib
import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from like_cuda import LikeCuda
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from mmdet.layers import (
    BATCH_NORMS,
    BatchNorm2d,
    ConvModule,
    CrossIterBatchNorm2d,
    SyncBN,
    batch_stats,
    build_norm_layer,
)
from mmdet.layers.cbn import layer
from mmdet.layers.norm import GroupNorm
from mmdet.registry import MODELS


@pytest.mark.parametrize(
    'cfg, name, kind',
    [
        (dict(type='BN'), 'bn', BatchNorm2d),
        (dict(type='BN1d'), 'bn', nn.BatchNorm1d),
        (dict(type='SyncBN'), 'bn', SyncBN),
        (dict(type='MMSyncBN'), 'bn', SyncBN),
        (dict(type='GN', num_groups=4), 'gn', GroupNorm),
        (dict(type='CBN', buffer_num=3, burnin=8), 'bn', CrossIterBatchNorm2d),
        (dict(type=nn.InstanceNorm2d), 'in', nn.InstanceNorm2d),
    ],
)
def test_types_and_names(cfg, name, kind):
    given = copy.deepcopy(cfg)
    got_name, layer = build_norm_layer(cfg, 8)
    assert (got_name, type(layer)) == (name, kind) and cfg == given
    assert build_norm_layer(cfg, 8, postfix=2)[0] == f'{name}2'
    frozen = build_norm_layer({**cfg, 'requires_grad': False}, 8)[1]
    assert not any(p.requires_grad for p in frozen.parameters())
    assert all(p.requires_grad for p in layer.parameters())
    assert isinstance(layer, BATCH_NORMS) == (name == 'bn')


@pytest.mark.parametrize(
    'cfg, words',
    [
        (dict(type='CNB'), ["'CNB'", 'CBN']),
        (dict(type='sync_bn'), ['SyncBN']),
        (dict(type='Xyz'), ['BN, SyncBN, GN, CBN']),
        (dict(type='GN'), ['num_groups=32']),
        (dict(type='GN', num_groups=3), ['divisible']),
        (dict(type='BN', num_groups=4), ['num_groups', 'BatchNorm2d']),
        (dict(type='CBN', buffer=3), ['buffer', 'CrossIterBatchNorm2d']),
        (dict(type='CBN', buffer_num=-3), ['buffer_num=-3']),
        (dict(type=None), ['None']),
        (dict(), ["'type'"]),
        ('BN', ['must be a dict']),
    ],
)
def test_wrong_configs_say_what_is_wrong(cfg, words):
    with pytest.raises(ValueError) as error:
        build_norm_layer(cfg, 8)
    assert '\n' not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_users_register_their_own_norm():
    @MODELS.register_module()
    class MyLayerNorm(nn.Module):
        def __init__(self, num_features):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(num_features, 1, 1))

        def forward(self, x):
            return x * self.scale

    try:
        block = ConvModule(3, 8, 3, norm_cfg=dict(type='MyLayerNorm'))
        assert block.norm_name == 'ln' and isinstance(block.ln, MyLayerNorm)
        assert block(torch.randn(1, 3, 8, 8)).shape == (1, 8, 6, 6)
    finally:
        MODELS.module_dict.pop('MyLayerNorm')


@pytest.mark.parametrize('norm', [None, 'BN', 'GN', 'CBN', 'SyncBN'])
def test_conv_module_keys_bias_and_init(norm):
    cfg = norm and dict(type=norm, **(dict(num_groups=2) if norm == 'GN' else {}))
    torch.manual_seed(0)
    block = ConvModule(16, 64, 3, norm_cfg=cfg)
    own = {'GN': ['gn.weight', 'gn.bias'], None: ['conv.bias']}.get(norm, ['bn.weight', 'bn.bias'])
    assert sorted(name for name, _ in block.named_parameters()) == sorted(['conv.weight', *own])
    assert block.conv.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)
    assert (block(torch.randn(2, 16, 8, 8)) >= 0).all()
    bare = ConvModule(16, 64, 3, norm_cfg=cfg, act_cfg=None, bias=True)
    assert bare.conv.bias is not None and bare.activate is None


def test_conv_module_rejects_unknown_activations():
    with pytest.raises(ValueError, match="unknown type 'RELU'"):
        ConvModule(3, 8, 3, act_cfg=dict(type='RELU'))


def test_sync_bn_of_one_process_is_batch_norm():
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(SyncBN(8)(x), nn.BatchNorm2d(8)(x))
    x = x.to(memory_format=torch.channels_last)
    assert torch.equal(SyncBN(8)(x), BatchNorm2d(8)(x))


@pytest.mark.parametrize('frozen', [False, True])
@pytest.mark.parametrize('shape', [(2, 64, 24, 32), (40, 64, 7, 7), (1, 64, 1, 3)])
def test_group_norm_of_channels_last_bfloat16_is_computed_in_float32(shape, frozen):
    torch.manual_seed(0)
    norm = GroupNorm(8, 64).requires_grad_(not frozen)
    with torch.no_grad():
        norm.weight.normal_(), norm.bias.normal_()
    x = (torch.randn(shape) + 3).bfloat16().contiguous(memory_format=torch.channels_last).requires_grad_()
    grad = torch.randn(shape).bfloat16()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = norm(x)
    assert out.dtype == torch.bfloat16 and batch_stats.channels_last(out)
    assert not any(t.numel() == x.numel() and t.dtype == torch.float32 for t in kept)  # memory of bfloat16

    wide, weight, bias = (t.detach().double().requires_grad_() for t in (x, norm.weight, norm.bias))
    expected = torch.nn.functional.group_norm(wide, 8, weight, bias)
    parameters = () if frozen else (norm.weight, norm.bias)
    grads = torch.autograd.grad(out, (x, *parameters), grad)
    of_wide = torch.autograd.grad(expected, (wide, weight, bias), grad.double())
    ulp = 2**-8  # of bfloat16, to which the float32 results are rounded
    torch.testing.assert_close(out.double(), expected, rtol=ulp, atol=1e-4)
    assert grads[0].dtype == torch.bfloat16
    torch.testing.assert_close(grads[0].double(), of_wide[0], rtol=ulp, atol=1e-4)
    for got, right in zip(grads[1:], of_wide[1:]):
        torch.testing.assert_close(got.double(), right, rtol=1e-4, atol=1e-3)


# -- two processes ------------------------------------------------------------------------------------


def make_model(kind):
    torch.manual_seed(0)
    if kind == 'BN':
        cfg = dict(type='BN')
    elif kind.startswith('SyncBN'):
        cfg = dict(type='SyncBN')
    else:
        cfg = dict(type='CBN', buffer_num=2, sync=kind.startswith('sync'), burnin_iters=1)
        cfg['derivative_fraction'] = 0.25 if 'subsampled' in kind else 1.0
        cfg['full_gradient'] = 'full' in kind
    model = nn.Sequential(
        ConvModule(3, 8, 3, padding=1, norm_cfg=cfg),
        ConvModule(8, 4, 3, stride=2, norm_cfg=cfg, act_cfg=None),
    ).double()
    if 'compiled' in kind:  # with sync the norms stay outside the graph
        model.compile(backend='eager')
    return model.to(memory_format=layout_of(kind))


def layout_of(kind):
    return torch.channels_last if 'last' in kind else torch.contiguous_format


def train(model, share, layout=torch.contiguous_format):
    """Six steps on 4 images each; ``share`` picks this process's. Returns everything that training left."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    outs = []
    for step in range(6):
        images = torch.randn(4, 3, 12, 12, generator=generator, dtype=torch.float64)
        target = torch.randn(4, 4, 5, 5, generator=generator, dtype=torch.float64)
        out = model(images[share(step)].to(memory_format=layout))
        # Sums over images, so that processes of unequal shares add up to the whole.
        loss = (out - target[share(step)]).square().sum() / 16
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        outs.append(out.detach())
    plain = model.module if hasattr(model, 'module') else model
    histories = [block.bn.history.state() for block in plain if getattr(block.bn, 'history', None)]
    return dict(outs=outs, state=plain.state_dict(), histories=histories)


def uneven(rank, step):
    """Shares of 4 images: 2 and 2, 1 and 3, and none for one process."""
    cut = (2, 1, 4)[step % 3]
    return slice(0, cut) if rank == 0 else slice(cut, 4)


KINDS = [
    'SyncBN', 'sync CBN', 'sync CBN subsampled', 'sync CBN full gradient', 'sync CBN compiled',
    'SyncBN channels last', 'sync CBN channels last', 'sync CBN as on a GPU', 'sync CBN full gradient as on a GPU',
]  # fmt: skip
SYNCED = [(kind, even) for kind in KINDS for even in (True, False)]


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=2)
    try:
        results = {}
        for kind, even in [*SYNCED, ('CBN', True)]:
            model = DistributedDataParallel(make_model(kind), broadcast_buffers=False)
            model.register_comm_hook(None, sum_hook)
            half = slice(rank * 2, rank * 2 + 2)
            share = (lambda step: half) if even else (lambda step: uneven(rank, step))  # noqa: B023
            with LikeCuda() if 'GPU' in kind else contextlib.nullcontext():
                results[f'{kind} {even}'] = train(model, share, layout_of(kind))
        torch.save(results, f'{folder}/{rank}.pth')
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope='module')
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('processes')
    mp.spawn(worker, (str(folder),), nprocs=2)
    return [torch.load(folder / f'{rank}.pth') for rank in (0, 1)]


def sum_hook(state, bucket):
    """Gradients are summed, not averaged: the loss is a sum."""
    work = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
    return work.then(lambda future: future.value()[0])


@pytest.mark.parametrize('kind, even', SYNCED)
def test_two_processes_equal_one(two_processes, kind, even):
    parts = [results[f'{kind} {even}'] for results in two_processes]
    plain = 'BN' if kind.startswith('SyncBN') else kind.partition(' compiled')[0].partition(' as on')[0]
    plain = plain.removesuffix(' channels last')
    alone = train(make_model(plain), lambda step: slice(None))
    for a, b, whole in zip(*(part['outs'] for part in parts), alone['outs']):
        torch.testing.assert_close(torch.cat([a, b]), whole, rtol=1e-9, atol=1e-9)
    for part in parts:
        for key, value in alone['state'].items():
            torch.testing.assert_close(part['state'][key], value, rtol=1e-9, atol=1e-9)
        assert len(part['histories']) == len(alone['histories']) == (0 if kind.startswith('SyncBN') else 2)
        for got, want in zip(part['histories'], alone['histories']):
            torch.testing.assert_close(got['dvar'], want['dvar'], rtol=1e-8, atol=1e-9)
            torch.testing.assert_close(got['values'], want['values'], rtol=1e-8, atol=1e-9)


class Waits(TorchDispatchMode):
    """Counts numbers that the host reads from a tensor."""

    seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('like_cuda', [False, True])
def test_synchronised_cbn_does_not_wait_for_a_gpu(monkeypatch, like_cuda):
    monkeypatch.setattr(layer, 'process_group', lambda wanted: 'two processes')
    monkeypatch.setattr(batch_stats.dist, 'all_reduce', lambda sums, **options: sums.mul_(2))
    norm, conv = CrossIterBatchNorm2d(8, sync=True), nn.Conv2d(4, 8, 3)
    with LikeCuda() if like_cuda else contextlib.nullcontext(), Waits() as waits:
        for _ in range(3):
            norm.after(conv, torch.randn(2, 4, 9, 9)).square().sum().backward()
    assert norm.history.filled == 3 and waits.seen == 0
    with Waits() as waits:
        norm.after(conv, torch.randn(1, 4, 3, 3))  # one value a channel here: whether there are more must be known
    assert waits.seen == 1


def test_processes_without_sync_have_histories_of_their_own(two_processes):
    one, other = (results['CBN True'] for results in two_processes)
    assert torch.equal(one['state']['0.conv.weight'], other['state']['0.conv.weight'])
    assert not torch.allclose(one['histories'][0]['dvar'], other['histories'][0]['dvar'])
