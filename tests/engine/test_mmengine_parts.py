"""mmengine's own parts do in a run here what they say: averaged weights, early stop, data set wrappers, TensorBoard."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from test_resume import Record, equal, weights
from torch import nn
from toy_task import CONFIG, ToyDataset, write_config

from mmdet.checkpoints import read_checkpoint
from mmdet.config.errors import UserError
from mmdet.engine.runner import wrapper_cfg
from mmdet.layers import ConvModule
from mmdet.registry import DATASETS


@DATASETS.register_module(force=True)
class WholeToyDataset(ToyDataset):
    def full_init(self):
        """There is nothing to load; the wrappers ask all the same."""


@DATASETS.register_module(force=True)
class ToyDatasetOf2(ToyDataset):
    pass


@DATASETS.register_module(force=True)
class ToyDatasetOf3(ToyDataset):
    metainfo = dict(classes=('circle', 'square', 'star'))


EMA = "custom_hooks = [dict(type='EMAHook', momentum=0.5)]\n"


def test_averaged_weights_are_evaluated_saved_and_resumed(tmp_path, train):
    config = write_config(tmp_path, text=EMA)
    whole = train(config, 'whole', {'train_cfg.max_epochs': 4})
    train(config, 'half')
    resumed = train(config, 'half', {'train_cfg.max_epochs': 4}, resume=True)
    assert equal(weights(resumed), weights(whole))
    saved = read_checkpoint('whole/epoch_4.pth')
    averaged, own = saved['state_dict'], saved['ema_state_dict']
    assert torch.equal(own['module.stem.weight'], whole.model.stem.weight)
    assert not torch.equal(averaged['stem.weight'], own['module.stem.weight'])
    assert equal(read_checkpoint('half/epoch_4.pth')['state_dict'], averaged)
    with pytest.raises(UserError, match='whole/epoch_4.pth is of a run with EMAHook'):
        train(write_config(tmp_path), 'other', {'train_cfg.max_epochs': 5}, resume='whole/epoch_4.pth')


def test_averages_begin_with_the_weights_that_are_loaded(tmp_path, run_tool):
    """Of other classes, in training; whole ones, in a test."""
    write_config(tmp_path)
    write_config(tmp_path, 'first.py', text=EMA)
    options = ('--seed', 0, '--cfg-options', 'train_cfg.max_epochs=1')
    assert run_tool('train.py', 'first.py', '--work-dir', 'first', *options)[0] == 0
    for name, classes in dict(same=2, other=3).items():
        detector = f"type='ToyDetector', num_classes={classes}"
        text = CONFIG.replace("type='ToyDetector'", detector).replace("'ToyDataset'", f"'ToyDatasetOf{classes}'")
        write_config(tmp_path, f'{name}.py', base=text, text=EMA)
    for name in ('same', 'other'):
        words = (f'{name}.py', '--work-dir', name, *options, 'load_from=first/epoch_1.pth')
        status, out, err = run_tool('train.py', *words)
        assert status == 0, err
        assert ('the others keep their initial values' in out + err) == (name == 'other')
    status, out, err = run_tool('train.py', 'other.py', '--work-dir', 'first', '--resume')
    assert status == 2 and err.count('\n') == 1 and 'first/epoch_1.pth does not fit ToyDetector' in err
    words = ('first/epoch_1.pth', '--cfg-options', 'randomness.seed=0')
    plain = run_tool('test.py', 'toy.py', *words)[1]
    averaged = run_tool('test.py', 'first.py', *words)[1]
    assert plain.partition('mAP: ')[2].split()[0] == averaged.partition('mAP: ')[2].split()[0]


CLASSES = """
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.runner import EpochBasedTrainLoop
from torch.optim import Adam
default_hooks['checkpoint'] = dict(type=CheckpointHook, interval=1, save_best='auto')
custom_hooks = [dict(type=EMAHook, momentum=0.3)]
train_cfg = dict(type=EpochBasedTrainLoop, max_epochs=2)
optim_wrapper = dict(optimizer=dict(type=Adam, lr=0.1))
del CheckpointHook, EMAHook, EpochBasedTrainLoop, Adam
"""


def test_types_that_are_classes(tmp_path, train):
    """As in mmengine's own configs; what this project makes of mmengine's classes takes their place."""
    config = write_config(tmp_path, text=CLASSES)
    train(config, options={'train_cfg.max_epochs': 1})
    runner = train(config, resume=True)
    assert {'SafeCheckpointHook', 'StatisticsEMAHook'} <= {type(hook).__name__ for hook in runner.hooks}
    assert type(runner.train_loop).__name__ == 'EpochLoop' and type(runner.optim_wrapper.optimizer) is torch.optim.Adam
    assert "type='torch.optim.adam.Adam'" in Path('run/toy.py').read_text()


def test_an_early_stop_ends_like_any_run(tmp_path, train):
    stop = "custom_hooks = [dict(type='EarlyStoppingHook', monitor='mAP', patience=1, rule='greater', min_delta=9)]\n"
    runner = train(write_config(tmp_path, text=stop), 'a', {'train_cfg.max_epochs': 9})
    assert runner.epoch == 2 and Path('a/epoch_2.pth').exists() and not Path('a/epoch_3.pth').exists()
    with pytest.raises(UserError, match="EarlyStoppingHook: monitor='AP' is none of the metrics: mAP"):
        train(write_config(tmp_path, text=stop.replace("'mAP'", "'AP'")), 'b')


@pytest.mark.parametrize('kind, iterations', [('Repeat', 8), ('Concat', 8)])
def test_wrapped_data_sets(tmp_path, train, kind, iterations):
    inner = dict(Repeat="times=2, dataset=dict(type='WholeToyDataset')",
                 Concat="datasets=[dict(type='WholeToyDataset'), dict(type='WholeToyDataset')]")[kind]  # fmt: skip
    text = f"train_dataloader['dataset'] = dict(type='{kind}Dataset', {inner})\n"
    record = Record()
    train(write_config(tmp_path, text=text), 'a', {'train_cfg.max_epochs': 1}, hooks=[record])
    assert len(record.losses) == iterations
    assert sorted(sum(record.batches, [])) == sorted([*range(100, 108)] * 2)


def test_gradients_of_several_iterations(tmp_path, train):
    class Weights(Hook):
        seen = []

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            self.seen.append(runner.model.stem.weight.detach().clone())

    hook = Weights()
    options = {'optim_wrapper.accumulative_counts': 2, 'train_cfg.max_epochs': 1}
    train(write_config(tmp_path), 'a', options, hooks=[hook])
    changed = [not torch.equal(a, b) for a, b in zip(hook.seen, hook.seen[1:])]
    assert changed == [True, False, True]


@pytest.mark.parametrize('norm', ['BN', 'GN', 'CBN', 'BatchRenorm', 'MABN', 'FRN'])
def test_factors_for_norms_hold_for_every_norm(norm):
    """`norm_decay_mult` is theirs, `bias_lr_mult` is not: mmengine counts its own classes."""
    norm_cfg = dict(type=norm, **dict(num_groups=2) if norm == 'GN' else {})
    model = nn.Sequential(ConvModule(4, 4, 3, norm_cfg=norm_cfg), nn.Linear(4, 4))
    wrapper = dict(optimizer=dict(type='SGD', lr=1.0, weight_decay=1.0),
                   paramwise_cfg=dict(norm_decay_mult=0.5, bias_lr_mult=2.0))
    with DefaultScope.overwrite_default_scope('mmdet'):
        groups = build_optim_wrapper(model, wrapper).optimizer.param_groups
    settings = {group['params'][0]: (group['weight_decay'], group['lr']) for group in groups}
    layer = model[0].norm
    assert [settings[weight] for weight in layer.parameters()] == [(0.5, 1.0)] * 2
    assert [settings[weight] for weight in model[1].parameters()] == [(1.0, 1.0), (1.0, 2.0)]
    assert settings.keys() == {*model.parameters()}


@pytest.mark.parametrize('gpu', [True, False])
def test_several_processes_hold_each_gradient_once_unless_the_config_says_otherwise(monkeypatch, gpu):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpu)
    places = {} if gpu else dict(device_ids=None)  # mmengine adds the process's GPU
    plain = dict(type='MMDistributedDataParallel', broadcast_buffers=False, find_unused_parameters=False,
                 gradient_as_bucket_view=True, **places)  # fmt: skip
    assert wrapper_cfg(Config()) == plain
    asked = dict(static_graph=True, gradient_as_bucket_view=False)
    assert wrapper_cfg(Config(dict(model_wrapper_cfg=asked))) == {**plain, **asked}
    assert wrapper_cfg(Config(dict(find_unused_parameters=True)))['find_unused_parameters']
    other = dict(type='MMFullyShardedDataParallel', mixed_precision=True)
    assert wrapper_cfg(Config(dict(model_wrapper_cfg=other))) == other


def test_tensorboard_has_losses_and_metrics(tmp_path, train):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(write_config(tmp_path), 'a')
    events = EventAccumulator(str(next(Path('a').glob('*/vis_data/events*'))))
    events.Reload()
    assert {'loss', 'lr', 'mAP', 'memory'} <= set(events.Tags()['scalars'])


