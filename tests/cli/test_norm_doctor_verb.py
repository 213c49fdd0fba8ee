"""The verb `mmdet norm-doctor`."""

import json

import pytest
import torch
from factories import write_detector
from mmengine.config import Config
from mmengine.model import BaseModel

from mmdet.cli.norm_doctor import main, stepper
from mmdet.config.errors import UserError


@pytest.fixture
def detector(tmp_path, monkeypatch, on_the_cpu):
    monkeypatch.chdir(tmp_path)
    write_detector(tmp_path)
    return 'config.py'


@pytest.mark.slow
@pytest.mark.parametrize('norm', ['CBN', None])
def test_a_detector_is_examined(detector, tmp_path, capsys, norm):
    """Whatever norm the config has, its neck and mask head are looked at; a box head without convolutions has none."""
    own = {} if norm == 'CBN' else {'model.neck.norm_cfg': norm}
    options = ['--cfg-options', *(f'{key}={value}' for key, value in own.items())] if own else []
    main([detector, '--iters', '4', '--truth-batches', '2', '--out', 'doctor', *options])
    report = json.loads((tmp_path / 'doctor' / 'norm_doctor.json').read_text())
    buffers = dict(buffer_num=2) if norm == 'CBN' else {}
    assert report['trained_with'] == dict(type='CBN', full_gradient=True, **buffers)
    assert {name.split('.')[0] for name in report['layers']} == {'neck', 'roi_head'}
    assert report['layers']['neck.fpn_convs.0']['M'] == 2 * 24 * 24  # images of 96 pixels at stride 4
    assert all(len(layer['errors']) == 5 and len(layer['cosines']) == 6 for layer in report['layers'].values())
    assert (report['iterations'], report['truth_batches'], report['batch_size'], report['seed']) == (4, 2, 2, 0)
    assert len(report['advice']) == 3
    assert sorted(path.name for path in (tmp_path / 'doctor').iterdir()) == ['norm_doctor.json', 'norm_doctor.png']
    printed = capsys.readouterr().out
    assert all(line in printed for line in report['advice']) and 'neck.fpn_convs.0' in printed


@pytest.mark.parametrize('options, message', [
    (['train_dataloader=None', 'train_cfg=None', 'optim_wrapper=None'], 'has no train_dataloader'),
    (['train_dataloader.dataset.ann_file=none.json'], 'none.json'),
    (['train_dataloader.batch_size=9', 'train_dataloader.drop_last=True'], 'train_dataloader gives no batch'),
])  # fmt: skip
def test_a_config_without_images_is_refused_in_a_line(detector, options, message):
    with pytest.raises(UserError, match=message) as error:
        main([detector, '--iters', '1', '--cfg-options', *options])
    assert '\n' not in str(error.value)


def test_numbers_out_of_range(detector):
    with pytest.raises(UserError, match='--truth-batches 0: each must be at least 1'):
        main([detector, '--truth-batches', '0'])


def test_half_precision_trains_on_any_machine(on_the_cpu):
    """As in `mmdet train`: mmengine's wrapper alone refuses to run without a GPU."""

    class Fitted(BaseModel):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def forward(self, inputs, data_samples=None, mode='loss'):
            return dict(loss=self.weight * inputs)

    model = Fitted()
    optimizer = dict(type='SGD', lr=0.5)
    step = stepper(model, Config(dict(optim_wrapper=dict(type='AmpOptimWrapper', optimizer=optimizer))), 1)
    assert step(dict(inputs=torch.ones(())), 0) == 1 and model.weight.item() == 0.5
