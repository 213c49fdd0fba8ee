"""Detectors trained and run on a GPU and as on a GPU (tests/like_cuda.py), in float32 and mixed precision, against
torchvision's operators and plain torch.

With CUDA_ON_CPU (tests/cuda_on_cpu) the compiled operators are the CUDA kernels; test_cuda_on_cpu.py runs this file so.
"""

import contextlib
import importlib

import pytest
import torch
import torch.nn.functional as F
from factories import KINDS
from factories import quick_detector as build
from factories import train_and_predict as run
from like_cuda import LikeCuda

from mmdet.layers import FocalLoss
from mmdet.layers.batch_stats import Normalize
from mmdet.layers.cbn import kernels

NORMS = {
    'mask_rcnn': dict(type='CBN', buffer_num=2, derivative_fraction=1 / 16),
    'faster_rcnn': dict(type='CBN', buffer_num=2),
    'cascade_mask_rcnn': dict(type='CBN', buffer_num=2, full_gradient=True),
    'retinanet': dict(type='CBN', buffer_num=2, burnin_iters=1, derivative_fraction=1 / 4),
    'rpn': dict(type='GN', num_groups=8),
}


@pytest.fixture(params=['pretended', pytest.param('cuda', marks=pytest.mark.cuda)])
def gpu(request):
    """A device, and the context in which it is a GPU."""
    return ('cuda', contextlib.nullcontext()) if request.param == 'cuda' else ('cpu', LikeCuda())


@pytest.fixture
def run_plainly(monkeypatch):
    """`run` without compiled operators."""

    def plainly(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(kernels, 'take', lambda y: False)
            for name in ('roi_align', 'nms', 'masks'):
                patch.setattr(importlib.import_module(f'mmdet.ops.{name}'), 'serves', lambda tensor: False)
            return run(*arguments)

    return plainly


def losses_agree(log: dict, wanted: dict, rtol: float, atol: float) -> None:
    for key in [key for key in wanted if 'loss' in key]:  # accuracy counts ties
        assert log[key].dtype == torch.float32
        torch.testing.assert_close(log[key], wanted[key], rtol=rtol, atol=atol)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last], ids=str)
def test_detectors_train_and_find_alike(kind, memory_format, make_data, run_plainly, gpu):
    data, (device, context) = make_data([3, 0], ignored=2), gpu
    wanted_log, wanted_weights, wanted = run_plainly(build(kind, NORMS[kind]).to(device), data)
    with context:
        log, weights, found = run(build(kind, NORMS[kind]).to(device, memory_format=memory_format), data)
    slack = 10 if device == 'cuda' else 1  # sums in any order, and so now and then another proposal
    losses_agree(log, wanted_log, rtol=1e-3 * slack, atol=1e-4 * slack**2)
    torch.testing.assert_close(weights, wanted_weights, rtol=1e-3 * slack, atol=1e-4 * slack)
    for instances, others in zip(found, wanted, strict=True):
        assert len(instances) == len(others) > 0 and instances.scores.device.type == device
        torch.testing.assert_close(instances.scores, others.scores, rtol=1e-2 * slack, atol=1e-3 * slack)


HALVES = [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)]  # a CPU is slow in float16


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('dtype', HALVES, ids=str)
def test_detectors_train_in_mixed_precision(kind, dtype, make_data, run_plainly, gpu):
    data, (device, context) = make_data([3, 1], ignored=2), gpu
    wanted = run_plainly(build(kind, NORMS[kind]).to(device), data)[0]
    with context:
        log, weights, found = run(build(kind, NORMS[kind]).to(device), data, dtype, scale=2.0**12)
    losses_agree(log, wanted, rtol=0.02, atol=0.1)  # a proposal more or less is sampled
    assert all(torch.isfinite(weight).all() for weight in weights)
    assert all(len(instances) > 0 for instances in found)


def test_a_process_without_rois_beside_others():
    """Synchronised CBN: statistics of all processes, none of this one's."""
    y, ones = torch.zeros(0, 4, 3, 3, requires_grad=True), torch.ones(4, requires_grad=True)
    with LikeCuda():
        statistics = [ones.detach()] * 2
        out = Normalize.apply(y, *statistics, ones, ones, 1e-5, 2, 8, None)
        grads = torch.autograd.grad(out.sum(), [y, ones])
    assert out.shape == grads[0].shape == y.shape and not grads[1].any()


@pytest.mark.parametrize('positives', [0, 3])
def test_focal_loss_is_a_float32_sum(positives):
    """Of very many small numbers, and with a loss scale that half precision cannot hold."""
    torch.manual_seed(0)
    logits = (torch.randn(5000, 20) - 9).half()
    target = torch.full((5000,), 20)
    target[:positives] = torch.arange(positives)
    results = []
    for autocast in (False, True):
        leaf = logits.detach().requires_grad_()
        weight = logits.new_ones(5000) if autocast else torch.ones(5000)
        with LikeCuda(), torch.autocast('cpu', torch.float16, enabled=autocast):
            loss = FocalLoss()(leaf if autocast else leaf.float(), target, weight, avg_factor=1)
        (grad,) = torch.autograd.grad(loss * 2.0**17, leaf)
        assert loss.dtype == torch.float32
        results.append((loss, grad))
    torch.testing.assert_close(*results, rtol=1e-5, atol=0)


def test_the_pretence_holds_within_its_block_alone():
    x, weight = torch.randn(2, 4, 3, 3), torch.ones(4)

    def behaviour():
        with torch.autocast('cpu', torch.bfloat16):
            y = F.conv2d(x, torch.ones(4, 4, 1, 1))
            return x.is_cuda, y.dtype, F.group_norm(y, 2).dtype, y.exp().dtype, (y @ y).dtype, y.sum().dtype

    half, full = torch.bfloat16, torch.float32
    before = behaviour()
    with LikeCuda():
        assert behaviour() == (True, half, full, full, half, full)
        torch.testing.assert_close(
            torch.batch_norm_elemt(x, weight, weight, weight, weight, 0.0),
            F.batch_norm(x, weight, weight, eps=1e-12) + 1
        )
        with pytest.raises(AssertionError):  # statistics in half precision
            torch.batch_norm_elemt(x.half(), weight, weight, weight.half(), weight.half(), 0.0)
        with torch.autocast('cpu', half), pytest.raises(RuntimeError, match='unsafe to autocast'):
            F.binary_cross_entropy(weight, weight)
    assert behaviour() == before == (False, half, half, half, half, half)
    with pytest.raises(NotImplementedError):
        torch.batch_norm_elemt(x, weight, weight, weight, weight, 0.0)
