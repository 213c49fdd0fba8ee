"""Detecting from Python: a model from a config and a checkpoint, images as files or arrays."""

import copy
from pathlib import Path

import factories
import numpy as np
import pytest
import torch

from mmdet.apis import inference_detector, init_detector
from mmdet.config.errors import UserError
from mmdet.config.load import load_config
from mmdet.engine import amp
from mmdet.visualization.visualizer import read_image, write_image

CONFIG = Path(__file__).resolve().parents[2] / 'configs' / 'mask_rcnn' / 'mask_rcnn_r50_fpn_1x.py'
SMALL = {
    **factories.RESNET18,
    'model.test_cfg.rcnn.score_thr': 0.0, 'model.test_cfg.rcnn.max_per_img': 3, 'model.test_cfg.rpn.max_per_img': 20,
}  # fmt: skip


def small() -> dict:
    cfg = load_config(CONFIG)
    step = next(i for i, s in enumerate(cfg.test_dataloader.dataset.pipeline) if s['type'] == 'Resize')
    return {**SMALL, f'test_dataloader.dataset.pipeline.{step}.scale': (160, 128)}


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    return init_detector(CONFIG, device='cpu', cfg_options=small())


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (120, 200, 3), np.uint8)


def test_files_arrays_and_lists_give_the_same(model, image, tmp_path):
    write_image(tmp_path / 'a.png', image)
    sample = inference_detector(model, tmp_path / 'a.png')
    bgr = np.ascontiguousarray(read_image(tmp_path / 'a.png')[..., ::-1])
    others = inference_detector(model, [bgr, str(tmp_path / 'a.png')])
    assert len(others) == 2
    instances = sample.pred_instances
    assert 0 < len(instances) <= 3 and set(instances.keys()) == {'bboxes', 'scores', 'labels', 'masks'}
    for other in others:
        assert torch.equal(other.pred_instances.bboxes, instances.bboxes)
        assert torch.equal(other.pred_instances.scores, instances.scores)
    assert instances.masks[0]['size'] == [120, 200]
    assert instances.bboxes[:, 2].max() <= 200 and instances.bboxes[:, 3].max() <= 120


def test_the_layout_on_the_cpu_changes_only_the_speed(model, image):
    weight = model.backbone.conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    plain = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    found, expected = (inference_detector(net, image).pred_instances for net in (model, plain))
    torch.testing.assert_close(found.bboxes, expected.bboxes, atol=1e-2, rtol=0)
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-4, rtol=0)


@pytest.mark.parametrize('found', ['AMX', ''])
def test_mixed_precision(image, monkeypatch, capsys, found):
    monkeypatch.setattr(amp, 'bfloat16_instructions', lambda: found)
    model, seen = init_detector(CONFIG, device='cpu', cfg_options=small(), amp=True), []
    assert capsys.readouterr().out.count('\n') == 1
    model.roi_head.bbox_head.fc_cls.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    instances = inference_detector(model, image).pred_instances
    assert seen == [torch.bfloat16 if found else torch.float32]
    assert instances.bboxes.dtype == instances.scores.dtype == torch.float32


def test_classes_come_from_the_data_set_or_the_checkpoint(model, tmp_path):
    assert len(model.dataset_meta['classes']) == 80 and not model.training
    path = tmp_path / 'x.pth'
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=('cat',)))), path)
    loaded = init_detector(CONFIG, str(path), device='cpu', cfg_options=small())
    assert loaded.dataset_meta['classes'] == ('cat',)
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values()))


def test_wrong_use(model, tmp_path):
    with pytest.raises(FileNotFoundError, match='checkpoint nothing.pth not found'):
        init_detector(CONFIG, 'nothing.pth', cfg_options=small())
    with pytest.raises(UserError, match="palette='cuda:0' is a device: write .*device='cuda:0'"):
        init_detector(CONFIG, None, 'cuda:0')
    with pytest.raises(UserError, match="palette 'blau' is not a colour"):
        init_detector(CONFIG, palette='blau')
    weights = model.state_dict()
    weights.pop('roi_head.bbox_head.fc_cls.weight')
    torch.save(dict(state_dict=weights), tmp_path / 'x.pth')
    with pytest.raises(UserError, match='1 not in the file: roi_head.bbox_head.fc_cls.weight'):
        init_detector(CONFIG, str(tmp_path / 'x.pth'), cfg_options=small())
    with pytest.raises(UserError, match=r'must be \(height, width, 3\) uint8, got \(3, 8, 8\) float64'):
        inference_detector(model, np.zeros((3, 8, 8)))
    with pytest.raises((UserError, FileNotFoundError, ValueError), match='missing.jpg'):
        inference_detector(model, str(tmp_path / 'missing.jpg'))
