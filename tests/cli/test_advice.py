"""The advice in messages: it names the way that the tools have, and loses nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from factories import RESNET18

from mmdet.apis import inference_detector, init_detector
from mmdet.config.errors import UserError
from mmdet.config.load import load_config
from mmdet.registry import MODELS

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'


@pytest.mark.parametrize('words, advice', [
    (['--lr', '0.01'], '--cfg-options optim_wrapper.optimizer.lr=0.01.'),
    (['--load-from', 'x.pth'], '--cfg-options load_from=FILE.'),
    (['--pretrained=x.pth'], '--cfg-options load_from=FILE.'),
    (['--epochs', '24'], '--cfg-options train_cfg.max_epochs=24.'),
    (['--batch-size', '2'], '--cfg-options train_dataloader.batch_size=2.'),
])  # fmt: skip
def test_options_of_other_tools(run_tool, words, advice):
    status, out, err = run_tool('train.py', CONFIGS / 'rpn' / 'rpn_r50_fpn_1x.py', *words)
    assert status == 2 and not out and err.count('\n') == 1
    assert f'unrecognized arguments: {" ".join(words)}.' in err and advice in err


def test_the_places_that_the_advice_names_are_there():
    load_config(CONFIGS / 'rpn' / 'rpn_r50_fpn_1x.py', {
        'optim_wrapper.optimizer.lr': 0.01, 'load_from': 'x.pth', 'train_cfg.max_epochs': 24,
        'train_dataloader.batch_size': 2, 'train_dataloader.num_workers': 4, 'data_root': 'x'})  # fmt: skip


CASCADE = f"_base_ = '{CONFIGS / 'cascade_rcnn' / 'cascade_rcnn_r50_fpn_1x.py'}'\n"


@pytest.mark.parametrize('change, place, advice', [
    ('model = dict(roi_head=dict(bbox_head=dict(num_classes=3)))', 'model.roi_head.bbox_head is a dict here and a list '
     'of 3', 'bbox_head=[dict(x, num_classes=3) for x in _base_.model.roi_head.bbox_head]'),
    ('param_scheduler = dict(by_epoch=True)', 'param_scheduler is a dict here and a list of 2',
     'param_scheduler=[dict(x, by_epoch=True) for x in _base_.param_scheduler]'),
    ('model = dict(train_cfg=dict(rcnn=dict(pos_weight=2)))', 'model.train_cfg.rcnn is a dict here and a list of 3',
     'rcnn=[dict(x, pos_weight=2) for x in _base_.model.train_cfg.rcnn]'),
])  # fmt: skip
def test_a_dict_in_the_place_of_a_list(tmp_path, run_tool, change, place, advice):
    path = tmp_path / 'child.py'
    path.write_text(CASCADE + change)
    status, _, err = run_tool('print_config.py', path)
    assert status == 2 and place in err and advice in err and '_delete_' not in err and err.count('\n') == 1
    # the advice, followed
    key, _, value = advice.partition('=')
    head, _, rest = change.partition(f'{key} = dict(' if change.startswith(key) else f'{key}=dict(')
    path.write_text(CASCADE + (f'{key} = {value}' if not head else f'{head}{key}={value}{rest[rest.index(")") + 1:]}'))
    kept, whole = load_config(path).to_dict(), load_config(CASCADE.split("'")[1]).to_dict()
    changed = eval(f'dict({advice.partition("dict(x, ")[2].partition(")")[0]})')
    for name in place.split(' ')[0].split('.'):
        kept, whole = kept[name], whole[name]
    assert kept == [{**part, **changed} for part in whole]


def test_channels_that_do_not_fit():
    options = {**RESNET18, 'model.neck.in_channels': [256, 512, 1024, 2048]}
    model = init_detector(CONFIGS / 'rpn' / 'rpn_r50_fpn_1x.py', cfg_options=options)
    with pytest.raises(UserError, match=r'FPN was built for features of \[256, .*\] channels and gets \[64, 128, 256, '
                                        r'512\]: set its in_channels=\[64, 128, 256, 512\]'):  # fmt: skip
        inference_detector(model, np.zeros((64, 64, 3), np.uint8))


@pytest.mark.parametrize('part, inputs', [
    (dict(type='RPNHead'), [torch.zeros(1, 4, 8, 8)] * 5),
    (dict(type='RetinaHead', num_classes=2), [torch.zeros(1, 4, 8, 8)] * 5),
    (dict(type='Shared2FCBBoxHead', num_classes=2), torch.zeros(1, 4, 7, 7)),
    (dict(type='FCNMaskHead', num_classes=2), torch.zeros(1, 4, 14, 14)),
])  # fmt: skip
def test_channels_that_do_not_fit_a_head(part, inputs):
    head = MODELS.build(dict(part, in_channels=8))
    message = f'{type(head).__name__} was built for features of 8 channels and gets 4: set its in_channels=4'
    with pytest.raises(UserError, match=message):
        head(inputs)
