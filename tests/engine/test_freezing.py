"""`frozen_parts = [...]` of a config: parts that are not trained."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from factories import batch, tiny_detector
from mmengine.hooks import Hook
from toy_task import ENVIRONMENT, ToyDetector, weights, write_config

from mmdet.config.errors import UserError
from mmdet.engine.freezing import freeze
from mmdet.engine.hooks import FreezeHook
from mmdet.layers.cbn import cbn_layers

ROOT = Path(__file__).resolve().parents[2]


class Modes(Hook):
    def __init__(self):
        self.start, self.modes = None, set()

    def before_train(self, runner):
        self.start = weights(runner)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.modes.add((runner.model.head.norm.training, runner.model.head.fc.training, runner.model.training))


@pytest.mark.parametrize('names, frozen', [
    (['head.norm'], {'head.norm'}),
    (['stem', 'head.n*'], {'stem', 'head.norm'}),
    ('head.f?.weight', {'head.fc.weight'}),
    (['*.bias'], {'stem.bias', 'head.norm.bias', 'head.fc.bias'}),
])  # fmt: skip
def test_frozen_parts_stay_as_they_are(tmp_path, train, names, frozen):
    modes = Modes()
    runner = train(write_config(tmp_path, text=f'frozen_parts = {names!r}\n'), hooks=[modes])
    end = weights(runner)
    kept = {name for name in end if torch.equal(end[name], modes.start[name])}
    assert kept == {name for name in end if any(name == part or name.startswith(part + '.') for part in frozen)}
    states = runner.optim_wrapper.optimizer.state
    assert {id(p) for p in states} == {id(p) for name, p in runner.model.named_parameters() if name not in kept}
    norm_trains = 'head.norm' not in frozen
    assert modes.modes == {(norm_trains, True, True)}


def test_a_run_that_freezes_resumes_to_the_bit(tmp_path, train):
    config = write_config(tmp_path, text="frozen_parts = ['stem', 'head.norm']\n")
    whole = weights(train(config, 'whole', {'train_cfg.max_epochs': 3}))
    train(config, 'half')
    resumed = weights(train(config, 'half', {'train_cfg.max_epochs': 3}, resume=True))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_frozen_cbn_normalises_by_its_running_statistics_and_keeps_its_history():
    model = tiny_detector('faster_rcnn')  # CBN in the neck
    data = batch([2, 1])
    for _ in range(2):
        model.train()(**model.data_preprocessor(data, True), mode='loss')
    layers = cbn_layers(model)
    frozen = {name: layer for name, layer in layers.items() if name.startswith('neck.lateral_convs')}
    assert 0 < len(frozen) < len(layers)
    freeze(model, ['neck.lateral_convs'])
    hook = FreezeHook(['neck.lateral_convs'])
    runner = SimpleNamespace(model=model)
    hook.before_train(runner)
    model.train()
    hook.before_train_iter(runner, 0)
    before = {name: (layer.running_mean.clone(), layer.steps) for name, layer in layers.items()}
    losses = model(**model.data_preprocessor(data, True), mode='loss')
    model.parse_losses(losses)[0].backward()
    for name, layer in layers.items():
        mean, steps = before[name]
        assert layer.training == (name not in frozen)
        assert torch.equal(layer.running_mean, mean) == (name in frozen)
        assert layer.steps == steps + (name not in frozen)
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert not any(name.startswith('neck.lateral_convs') for name in trained)
    assert any(name.startswith('neck.fpn_convs') for name in trained)
    assert any(name.startswith('backbone') for name in trained)  # gradients pass through


@pytest.mark.parametrize('names, words', [
    (['stam'], "no part of the model is called 'stam'. Did you mean stem"),
    (['backbone'], "called 'backbone'. The model has .*stem, head"),
    (['*'], 'nothing is left to train'),
    ([3], "must be a list of names such as"),
    (dict(stem=True), "must be a list of names such as"),
])  # fmt: skip
def test_names_that_freeze_nothing_or_all(names, words):
    with pytest.raises(UserError, match=words):
        freeze(ToyDetector(), names)


@pytest.mark.slow
def test_two_processes(tmp_path):
    """DistributedDataParallel waits for no gradient of a frozen part."""
    config = write_config(tmp_path, text="frozen_parts = ['head.norm', 'stem']\n")
    done = subprocess.run(
        [sys.executable, ROOT / 'tools' / 'train.py', str(config), '--seed', '0', '--gpus', '2', '--work-dir', 'run'],
        env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    assert 'frozen: 24 of 34 parameters' in done.stdout + done.stderr
