"""CBN in the graphs that are made for a GPU: torch.compile's, and CUDA graphs."""

import copy

import pytest
import torch
from like_cuda import LikeCuda
from torch import nn
from torch._dynamo.variables import ConstantVariable, TensorVariable

from mmdet.layers import CrossIterBatchNorm2d


def layers(**options):
    torch.manual_seed(0)
    return nn.Conv2d(4, 8, 3, padding=1), CrossIterBatchNorm2d(8, **options)


@pytest.mark.parametrize('full_gradient', [False, True])
def test_compiled_for_images_of_any_size(monkeypatch, full_gradient):
    """SyncBatchNorm's kernels, which serve on a GPU otherwise, are unknown to a graph whose sizes change."""
    monkeypatch.setattr(TensorVariable, 'method_attr_is_cuda', lambda *args: ConstantVariable.create(True))
    torch._dynamo.reset()
    conv, norm = layers(full_gradient=full_gradient)
    twin_conv, twin = copy.deepcopy((conv, norm))
    graphs = torch.compile(lambda x: twin.after(twin_conv, x), backend='aot_eager', dynamic=True, fullgraph=True)
    for size in (10, 12, 15):
        x = torch.randn(2, 4, size, size + 1)
        direction = torch.randn(2, 8, size, size + 1)
        with LikeCuda():
            norm.after(conv, x).backward(direction)
            graphs(x).backward(direction)
    for module, other in ((conv, twin_conv), (norm, twin)):
        for one, two in zip(module.parameters(), other.parameters()):
            torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(norm.history.dvar, twin.history.dvar)


def test_a_cuda_graph_is_refused(monkeypatch):
    conv, norm = layers()
    x = torch.randn(2, 4, 9, 9)
    with LikeCuda():
        norm.after(conv, x)
        monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: True)
        with pytest.raises(ValueError, match='a CUDA graph would always write to one place'):
            norm.after(conv, x)
        assert norm.history.filled == norm.steps == 1
        norm.eval().after(conv, x)


@pytest.mark.skipif(not hasattr(torch.Tag, 'cudagraph_unsafe'), reason='torch 2.8 came with it')
def test_compiled_cuda_graphs_leave_the_history_out():
    assert torch.Tag.cudagraph_unsafe in torch.ops.mmdet.cbn_statistics.default.tags


@pytest.mark.cuda
@pytest.mark.skipif(not hasattr(torch.Tag, 'cudagraph_unsafe'), reason='torch 2.8 came with it')
def test_compiled_with_cuda_graphs():
    torch._dynamo.reset()
    conv, norm = (layer.cuda() for layer in layers())
    twin_conv, twin = copy.deepcopy((conv, norm))
    graphs = torch.compile(lambda x: twin.after(twin_conv, x), mode='reduce-overhead')
    for _ in range(6):
        x = torch.randn(2, 4, 10, 12, device='cuda')
        torch.compiler.cudagraph_mark_step_begin()
        outs = graphs(x), norm.after(conv, x)
        torch.testing.assert_close(*outs, rtol=1e-3, atol=1e-3)
        for out in outs:
            out.square().mean().backward()
        with torch.no_grad():
            twin_conv.weight.copy_(nn.init.normal_(conv.weight))
    assert norm.history.slot == twin.history.slot == 0 and twin.steps == 6
    torch.testing.assert_close(norm.history.dvar, twin.history.dvar, rtol=1e-3, atol=1e-3)


@pytest.mark.cuda
def test_captured_by_hand():
    conv, norm = (layer.cuda() for layer in layers())
    x = torch.randn(2, 4, 10, 12, device='cuda')
    y = conv(x)
    with pytest.raises(ValueError, match='a CUDA graph'), torch.cuda.graph(torch.cuda.CUDAGraph()):
        norm(y, conv=conv, x=x)
