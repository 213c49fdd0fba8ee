"""Detectors on a pretended accelerator (tests/other_device.py): nothing mixes host and device, nothing changes."""

import contextlib

import pytest
import torch
from other_device import DEVICE, DeviceTensor, OtherDevice
from thin_detectors import KINDS, build, run

from mmdet.layers import cbn


@pytest.mark.parametrize('kind', KINDS)
def test_training_and_inference_stay_on_the_device(kind, make_data, monkeypatch):
    monkeypatch.setattr(cbn, '_full_precision', lambda y: contextlib.nullcontext())  # no autocast for this device
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


def test_state_of_cbn_travels_between_devices(make_data, monkeypatch):
    monkeypatch.setattr(cbn, '_full_precision', lambda y: contextlib.nullcontext())
    host = build('mask_rcnn')
    run(host, make_data([3, 1]))
    state = cbn.cbn_state(host)
    with OtherDevice() as device:
        model = device.move(build('mask_rcnn'))
        cbn.load_cbn_state(model, state)
        layers = cbn.cbn_layers(model)
        assert layers and all(isinstance(layer.window.dvar, DeviceTensor) for layer in layers.values())
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
    with pytest.raises(RuntimeError, match='outside of'):
        there + 1
