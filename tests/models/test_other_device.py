"""Detectors on a pretended accelerator (tests/other_device.py): nothing mixes host and device, nothing changes."""

import contextlib

import pytest
import torch
from factories import KINDS
from factories import quick_detector as build
from factories import train_and_predict as run
from other_device import DEVICE, DeviceTensor, OtherDevice

from mmdet.layers import cbn
from mmdet.structures.masks import PolygonMasks


@pytest.mark.parametrize('kind', KINDS)
def test_training_and_inference_stay_on_the_device(kind, make_data, monkeypatch):
    monkeypatch.setattr(cbn.layer, '_full_precision', lambda y: contextlib.nullcontext())  # no autocast for this device
    data = make_data([3, 0], ignored=2)
    log, weights, found = run(build(kind), data)
    with OtherDevice() as device:
        model = device.move(build(kind))
        model.data_preprocessor._device = DEVICE
        device_log, device_weights, device_found = run(model, data)
        for key, value in log.items():
            assert device_log[key].item() == value.item(), key
        for here, there in zip(weights, device_weights, strict=True):
            assert isinstance(there.data, DeviceTensor) and torch.equal(there.cpu(), here)
        for here, there in zip(found, device_found, strict=True):
            assert len(here) > 0 and here.keys() == there.keys()
            assert there.bboxes.device == there.labels.device == DEVICE
            assert torch.equal(there.bboxes.cpu(), here.bboxes) and torch.equal(there.scores.cpu(), here.scores)
            if 'masks' in here:
                assert list(there.masks) == list(here.masks)


@pytest.mark.parametrize('kind, polygons, expected, made', [
    ('faster_rcnn', False, dict(nonzero=2 * (2 + 1 + 2), nms=2), 0),
    ('mask_rcnn', False, dict(nonzero=2 * (2 + 1 + 2), nms=2, copy=1), 2 * 2),
    ('mask_rcnn', True, dict(nonzero=2 * (2 + 1 + 2), nms=2, copy=1), 2 * 3),
    ('cascade_mask_rcnn', True, dict(nonzero=2 * (2 + 1 + 3 * 2), nms=2, copy=3, index=2 * 2), 3 * 2 * 3),
    ('retinanet', False, dict(nonzero=2 * 2 + 1), 0),
])  # fmt: skip
def test_what_a_training_step_waits_for(kind, polygons, expected, made, make_data, monkeypatch):
    """Each image's positives and negatives, valid proposals and NMS; once a stage, for its mask targets, all
    positives. Nothing waits for ground truth and mask targets on their way to the device. Tensors are made on the host
    for mask targets alone: an image's bitmaps and their indices, or the three arrays of its polygons."""
    monkeypatch.setattr(cbn.layer, '_full_precision', lambda y: contextlib.nullcontext())
    data = make_data([3, 2], ignored=1)
    for sample in data['data_samples'] if polygons else ():
        boxes = sample.gt_instances.bboxes.numpy()
        del sample.gt_instances.masks
        sample.gt_instances.masks = PolygonMasks([[box[[0, 1, 2, 1, 2, 3]]] for box in boxes], 96, 128)
    at_the_heads = []
    with OtherDevice() as device:
        model = device.move(build(kind)).train()
        model.data_preprocessor._device = DEVICE
        if 'rcnn' in kind and 'cascade' not in kind:
            model.roi_head.bbox_head.register_forward_pre_hook(lambda *_: at_the_heads.append(device.waits.copy()))
        for _ in range(2):  # the first fills caches
            device.clear()
            loss, _ = model.parse_losses(model(**model.data_preprocessor(data, True), mode='loss'))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 35)
    assert device.waits == expected and device.made == made
    assert at_the_heads[1:] in ([], [expected])  # from the box head on nothing waits


@pytest.mark.parametrize('kind', KINDS)
def test_a_step_from_broken_weights_ends(kind, make_data):
    """NonFiniteLossHook may look at a GPU's loss one iteration late: that one must not fail in a way of its own."""
    model = build(kind).train()
    for p in model.parameters():
        p.data.fill_(torch.nan)
    loss, _ = model.parse_losses(model(**model.data_preprocessor(make_data([3, 0]), True), mode='loss'))
    loss.backward()
    assert loss.isnan()


def test_state_of_cbn_travels_between_devices(make_data, monkeypatch):
    monkeypatch.setattr(cbn.layer, '_full_precision', lambda y: contextlib.nullcontext())
    host = build('mask_rcnn')
    run(host, make_data([3, 1]))
    state = cbn.cbn_state(host)
    with OtherDevice() as device:
        model = device.move(build('mask_rcnn'))
        cbn.load_cbn_state(model, state)
        layers = cbn.cbn_layers(model)
        assert layers and all(isinstance(layer.history.dvar, DeviceTensor) for layer in layers.values())
        back = cbn.cbn_state(model)
    for name in state:
        assert torch.equal(back[name]['window']['dvar'], state[name]['window']['dvar'])


def test_the_pretended_device_notices_mixtures_and_waits():
    host = torch.randn(4, 3)
    with OtherDevice() as device:
        there = host.to(DEVICE)
        assert isinstance(there, DeviceTensor) and there.device == DEVICE and not isinstance(there.cpu(), DeviceTensor)
        for mix in (lambda: there + host, lambda: torch.cat([there, host]), lambda: there[torch.tensor([0, 2])],
                    lambda: torch.zeros(3, device=DEVICE) * host):  # fmt: skip
            with pytest.raises(RuntimeError, match='mixes the device with host tensors'):
                mix()
        device.waits.clear()
        assert there.new_tensor([1, 2]).device == DEVICE and (2 * there).sum().item() == pytest.approx(2 * host.sum())
        assert torch.equal(there.add_(1)[there > 1].cpu(), (host + 1)[host > 0])
        assert torch.rand(3, device=DEVICE).tolist() and (there > 0).nonzero().shape[1] == 2
        assert device.waits == dict(copy=2, _local_scalar_dense=1, index=1, tolist=1, nonzero=1)
        for sent in (there.to('cpu', non_blocking=True), host.to(DEVICE, non_blocking=True), there.copy_(host, True)):
            assert sent.shape == (4, 3) and device.waits['copy'] == 2
    with pytest.raises(RuntimeError, match='outside of'):
        there + 1
