"""``--amp``: what a machine has, and what follows from it."""

import copy

import pytest
import torch
from factories import batch, small_cfg
from mmengine.config import Config
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from toy_task import CONFIG, write_config

from mmdet.config.errors import UserError
from mmdet.engine import amp
from mmdet.engine.runner import fast_layout
from mmdet.registry import MODELS


def config(**wrapper):
    return Config(dict(optim_wrapper=dict(optimizer=dict(type='SGD'), **wrapper), test_cfg=dict(type='TestLoop')))


@pytest.mark.parametrize('found', ['AVX-512 BF16, AMX', ''])
def test_without_instructions_float32_stays(monkeypatch, capsys, found):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(amp, 'bfloat16_instructions', lambda: found)
    cfg = config(accumulative_counts=2)
    amp.use_amp(cfg)
    wrapper = amp.buildable(cfg.optim_wrapper)
    amp.use_amp_in_tests(cfg)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all((found or 'float32 stays') in line for line in lines)
    kind = 'CpuAmpOptimWrapper' if found else 'OptimWrapper'
    assert wrapper == dict(type=kind, accumulative_counts=2, optimizer=dict(type='SGD'))
    assert cfg.test_cfg.get('fp16', False) == bool(found) and cfg.test_cfg.type == 'TestLoop'


def test_gpus_take_float16(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    cfg = config()
    amp.use_amp(cfg)
    amp.use_amp_in_tests(cfg)
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper' and cfg.test_cfg.fp16
    assert amp.buildable(cfg.optim_wrapper) == cfg.optim_wrapper and cfg.optim_wrapper.loss_scale == 'dynamic'
    assert amp.half_precision('cuda:0') == torch.float16
    with pytest.raises(UserError, match='the config has MyWrapper'):
        amp.use_amp(config(type='MyWrapper'))


@pytest.mark.parametrize('options', ["loss_scale='dynamic', dtype='float16'", 'loss_scale=512.0'])
def test_a_config_that_asks_for_it_trains_without_a_gpu(tmp_path, run_tool, on_the_cpu, options):
    """As mmdetection's *_amp-1x_coco.py do, and what becomes of ``fp16`` in older ones."""
    config = CONFIG.replace('optim_wrapper = dict(', f"optim_wrapper = dict(type='AmpOptimWrapper', {options}, ")
    status, out, err = run_tool('train.py', write_config(tmp_path, base=config), '--work-dir', tmp_path / 'run')
    assert status == 0 and out.count('mixed precision: ') == 1, err
    assert "type='AmpOptimWrapper'" in (tmp_path / 'run' / 'toy.py').read_text()  # a GPU may continue it


def test_instructions_are_those_torch_finds(monkeypatch):
    for known in (True, False):
        for name in ('_is_avx512_bf16_supported', '_is_amx_tile_supported'):
            monkeypatch.setattr(torch.cpu, name, lambda: known, raising=False)  # noqa: B023
        monkeypatch.setattr(amp.platform, 'machine', lambda: 'x86_64')
        assert amp.bfloat16_instructions() == ('AVX-512 BF16, AMX' if known else '')


@pytest.mark.parametrize('norm', ['BN', 'CBN'])
def test_training_keeps_channels_last_maps_and_float32_losses(norm):
    cfg = small_cfg('mask_rcnn')
    cfg.backbone.update(norm_cfg=dict(type=norm), norm_eval=False, frozen_stages=-1)
    cfg.neck.norm_cfg = dict(type=norm)
    torch.manual_seed(0)
    model, seen = fast_layout(MODELS.build(cfg)).train(), []

    def look(module, inputs, output):
        if output.dim() == 4 and 1 not in output.shape[1:]:
            seen.append((output.dtype, output.is_contiguous(memory_format=torch.channels_last)))

    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(look)
    with torch.autocast('cpu', torch.bfloat16):
        losses = model(**model.data_preprocessor(batch([2, 3]), True), mode='loss')
    assert seen and set(seen) == {(torch.bfloat16, True)}
    losses = [value for name, value in losses.items() if 'loss' in name]
    assert {loss.dtype for loss in losses} == {torch.float32}
    sum(losses).backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.grad is not None)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['mask_rcnn', 'retinanet'])
def test_a_trained_model_finds_the_same(kind):
    """19 of 20 boxes within a pixel and their scores within 0.02, of those it is sure of; both are float32."""
    torch.manual_seed(0)
    cfg = small_cfg(kind, width=32)
    cfg.backbone.update(norm_eval=False, frozen_stages=-1, zero_init_residual=False)
    model = MODELS.build(cfg)
    data = batch([2, 3, 2, 3])
    for image, sample in zip(data['inputs'], data['data_samples']):  # each object in its class's colour
        image //= 4
        for (x1, y1, x2, y2), label in zip(sample.gt_instances.bboxes.int().tolist(), sample.gt_instances.labels):
            image[label, y1:y2, x1:x2] += 150
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(180):  # after 60 it depends on the processor which detections it is sure of
        losses = model.train()(**model.data_preprocessor(data, True), mode='loss')
        optimizer.zero_grad()
        model.parse_losses(losses)[0].backward()
        optimizer.step()
    found = []
    for half in (False, True):
        model = fast_layout(model.eval()) if half else model.eval()
        with torch.no_grad(), torch.autocast('cpu', torch.bfloat16, enabled=half):
            samples = model(**model.data_preprocessor(copy.deepcopy(data), False), mode='predict')
        found.append([sample.pred_instances for sample in samples])
    same = []
    for exact, rounded in zip(*found):
        assert rounded.bboxes.dtype == rounded.scores.dtype == torch.float32
        far = (rounded.bboxes[None] - exact.bboxes[:, None]).abs().amax(-1) > 1
        far |= (rounded.scores[None] - exact.scores[:, None]).abs() > 0.02
        far |= rounded.labels[None] != exact.labels[:, None]
        same.append((~far).any(1)[exact.scores > 0.5])
    same = torch.cat(same)
    assert len(same) >= 8 and same.float().mean() >= 0.95


class Gradients(TorchDispatchMode):
    """Notes groups and precision of convolutions' gradients."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution_backward.default:
            self.seen.append((args[9], args[0].dtype))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('groups, precision', [(1, torch.bfloat16), (2, torch.bfloat16), (8, torch.float32),
                                               (48, torch.float32)])  # fmt: skip
@pytest.mark.parametrize('bias', [False, True])
def test_thin_groups_have_float32_gradients(groups, precision, bias):
    torch.manual_seed(0)
    conv = nn.Conv2d(48, 96, 5, stride=2, padding=2, groups=groups, bias=bias).to(memory_format=torch.channels_last)
    image = torch.randn(2, 48, 37, 41, requires_grad=True)
    wrapper = amp.CpuAmpOptimWrapper(torch.optim.SGD(conv.parameters(), lr=0.1))
    with wrapper.optim_context(conv):
        out = conv(image)
    assert out.dtype == torch.bfloat16
    seed, learned = torch.randn_like(out), [image, *conv.parameters()]
    with Gradients() as gradients:
        found = torch.autograd.grad(out, learned, seed)
    assert gradients.seen == [(groups, precision)]
    expected = torch.autograd.grad(conv(image), learned, seed.float())
    for ours, exact in zip(found, expected):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, exact, rtol=0, atol=0.01 * exact.abs().max().item())
