"""Keys, losses, gradients and detections against recordings of mmdetection 3.3 (made by record_mmdet3.py)."""

import json
import os
from pathlib import Path

import mmdet3_cases as cases
import numpy as np
import pytest
import torch
from mmengine.config import Config
from pycocotools import mask as coco_mask

from mmdet.checkpoints import convert
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.masks import BitmapMasks

RECORDS = Path(os.environ.get('MMDET3_RECORDS', Path(__file__).parent / 'mmdet3_records'))


@pytest.fixture(scope='module', params=cases.CASES)
def case(request):
    """The recording, our model with the same weights, and the images."""
    record = np.load(RECORDS / f'{request.param}.npz')
    source = json.loads(str(record['source']))
    if source['photos']:
        folder = request.getfixturevalue('real_data') / 'photos'
        images = cases.photos(folder, source['photos'], source['height'])
    else:
        images = cases.made_up_images()
    _, config, *changes = cases.CASES[request.param]
    cfg = Config.fromfile(f'configs/{config}.py', lazy_import=False).model.to_dict()
    for change in (cases.RECIPES.get(cfg['type'], {}), *changes):
        cases.merge(cfg, change)
    cfg['backbone']['init_cfg'] = None
    if not source['photos']:
        cases.narrow(cfg)
    cases.sample_everything(cfg)
    model = MODELS.build(cfg)
    cases.fill_weights(model)
    return record, model, images


def test_same_keys_and_shapes(case):
    record, model, _ = case
    shapes = [json.loads(shape) for shape in record['shapes'].tolist()]
    theirs = {key: torch.empty(shape) for key, shape in zip(record['keys'].tolist(), shapes)}
    converted = convert(dict(state_dict=theirs)).state_dict
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_same_losses_and_gradients(case):
    record, model, images = case
    model.train().zero_grad()
    losses = cases.run(model, images, 'loss', DetDataSample, BitmapMasks)
    total, logged = model.parse_losses(losses)
    assert set(logged) - {'loss'} == set(record['loss_names'].tolist())
    for name, value in zip(record['loss_names'].tolist(), record['losses']):
        assert logged[name].item() == pytest.approx(value, rel=1e-4, abs=1e-5), name
    total.backward()
    squares: dict[str, float] = {}  # of the gradients of each layer
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            part = name.rpartition('.')[0]
            squares[part] = squares.get(part, 0.0) + float(parameter.grad.double().square().sum())
    names = [name.replace('bbox_head.rpn_', 'rpn_head.rpn_') for name in record['gradient_names'].tolist()]
    theirs = dict(zip(names, record['gradients']))
    assert {name for name, value in squares.items() if value} == {name for name, value in theirs.items() if value}
    for name, value in theirs.items():  # rounding may flip a ReLU
        assert squares.get(name, 0.0) ** 0.5 == pytest.approx(value, rel=1e-2, abs=1e-6), name


@torch.no_grad()
def test_same_detections(case):
    record, model, images = case
    model.eval()
    samples = cases.run(model, images, 'predict', DetDataSample, BitmapMasks)
    for index, sample in enumerate(samples):
        ours, height_width = sample.pred_instances, sample.ori_shape
        boxes, scores, labels = (record[f'{name}{index}'] for name in ('bboxes', 'scores', 'labels'))
        assert len(ours) == len(boxes) >= 10
        # by their nearest, not by their row: equal scores may change places
        apart = np.abs(ours.bboxes.numpy()[:, None] - boxes[None]).max(-1)
        apart[ours.labels.numpy()[:, None] != labels[None]] = np.inf
        apart += np.abs(ours.scores.numpy()[:, None] - scores[None])
        nearest = apart.argmin(0)
        assert apart.min(0).max() < 2e-3
        assert len(set(nearest.tolist())) == len(boxes)
        if f'masks{index}' in record:
            size = (len(boxes), *height_width)
            theirs = np.unpackbits(record[f'masks{index}'])[: np.prod(size)].reshape(size)
            mine = coco_mask.decode([ours.masks[i] for i in nearest]).transpose(2, 0, 1)
            assert theirs.any((1, 2)).mean() > 0.5
            assert (mine != theirs).sum() <= 1e-4 * theirs.sum()
