"""``--compile``: the same detections, for any size, and the way on where nothing compiles."""

import copy
import functools
from collections import Counter

import pytest
import torch
from factories import batch, small_cfg
from torch import nn
from torch._dynamo.eval_frame import _debug_get_cache_entry_list

from mmdet.engine.compiled import compile_for_inference
from mmdet.layers import pack
from mmdet.registry import MODELS


class Parts(nn.Module):
    """As the models name their parts."""

    compiles = dict(maps='images', rows='rois')

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 4)

    def maps(self, x):
        return self.linear(x.mean((2, 3))).relu()

    def rows(self, x):
        return self.linear(x) * 2


def count_graphs(monkeypatch, backend: str) -> list:
    """Grows with each graph that is compiled; 'eager' is dynamo without the code it would generate."""
    torch._dynamo.reset()
    graphs, compile_graph = [], torch._dynamo.lookup_backend(backend)

    def count(graph, inputs):
        graphs.append(graph)
        return compile_graph(graph, inputs)

    monkeypatch.setattr(torch, 'compile', functools.partial(torch.compile, backend=count))
    return graphs


@pytest.fixture
def uncached(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', str(tmp_path))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize('backend', ['eager', pytest.param('inductor', marks=pytest.mark.slow)])
@torch.no_grad()
def test_parts_are_compiled_once_for_all_sizes(capsys, monkeypatch, backend):
    graphs = count_graphs(monkeypatch, backend)
    plain = Parts()
    model = compile_for_inference(copy.deepcopy(plain))
    for rows in (0, 1, 5, 7, 3):
        x = torch.randn(rows, 8)
        torch.testing.assert_close(model.rows(x), plain.rows(x))
    for height in (4, 6, 9):
        x = torch.randn(1, 8, height, 2 * height)
        torch.testing.assert_close(model.maps(x), plain.maps(x))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ['rows', 'maps'] and all(line.endswith(' s') for line in lines)
    assert len(graphs) == 2
    with torch.enable_grad():
        assert model.rows(torch.randn(5, 8)).requires_grad  # as it was


@torch.no_grad()
def test_without_a_compiler_one_line_and_the_model_as_it_was(capsys, uncached, monkeypatch):
    import torch._inductor.config as inductor

    plain, x = Parts(), torch.randn(5, 8)
    model = compile_for_inference(copy.deepcopy(plain))
    with inductor.patch({'cpp.cxx': ('no-such-compiler',)}):
        for _ in range(2):
            assert torch.equal(model.rows(x), plain.rows(x))
        assert torch.equal(model.maps(x[:, :, None, None]), plain.maps(x[:, :, None, None]))
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith('--compile: rows stays as it is') and 'compiler' in line


@torch.no_grad()
def test_padding_that_follows_the_size_is_not_compiled(capsys, monkeypatch):
    graphs = count_graphs(monkeypatch, 'eager')
    plain, x = Parts(), torch.randn(5, 8)
    plain.backbone = nn.Identity()
    plain.backbone.fixed_padding = False
    model = compile_for_inference(copy.deepcopy(plain))
    for images in (1, 2):
        torch.testing.assert_close(model.maps(x[:images, :, None, None]), plain.maps(x[:images, :, None, None]))
    assert not graphs
    model.rows(x)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith('--compile: maps stays as it is') and second.startswith('--compile: rows')
    assert len(graphs) == 1


def detections(model, data):
    samples = model(**model.data_preprocessor(copy.deepcopy(data), False), mode='predict')
    return [sample.pred_instances for sample in samples]


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['mask_rcnn', 'cascade_mask_rcnn', 'retinanet', 'rpn'])
@torch.no_grad()
def test_detectors_find_the_same(kind, capsys):
    torch._dynamo.reset()
    torch.manual_seed(0)
    plain = MODELS.build(small_cfg(kind)).eval()
    model = compile_for_inference(pack(copy.deepcopy(plain)))
    for size in ((160, 192), (192, 160), (256, 320)):
        data = batch([2], *size)
        [expected], [found] = detections(plain, data), detections(model, data)
        assert len(found) == len(expected)
        same = (found.bboxes[None] - expected.bboxes[:, None]).abs().amax(2) <= 1e-2
        same &= (found.scores[None] - expected.scores[:, None]).abs() <= 1e-4
        assert same.any(0).all() and same.any(1).all()  # equal scores may change places
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == sum(len(getattr(module, 'compiles', ())) for module in plain.modules())
    parts = [getattr(module, name) for module in model.modules() for name in getattr(module, 'compiles', ())]
    for code, sharing in Counter(part.eager.__func__.__code__ for part in parts).items():  # stages have one class
        ways = len(_debug_get_cache_entry_list(code))
        assert sharing <= ways <= 2 * sharing, code  # torch has another way for maps of up to 20,480 values
