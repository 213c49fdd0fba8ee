"""A resumed run has the schedule of a whole one, wherever it was stopped; a changed one is applied and said."""

import mmengine.optim.scheduler as schedulers
import pytest
import torch
from mmengine.optim import _ParamScheduler
from test_resume import Record
from toy_task import ToyMetric, write_config

from mmdet.config.errors import UserError

EPOCHS = 8
# Where each class is in the middle of a phase, at its edges and past its end within eight steps.
OPTIONS = dict(
    Constant=dict(factor=0.5, end=3), CosineAnnealing=dict(T_max=3, eta_min=0.01), Exponential=dict(gamma=0.8, end=5),
    Linear=dict(start_factor=0.2, end=4), MultiStep=dict(milestones=[2, 5], gamma=0.5), Step=dict(step_size=3),
    Poly=dict(power=2, eta_min=0.01, end=6), OneCycle=dict(eta_max=0.5, total_steps=9),
    CosineRestart=dict(periods=[2, 3, 4], restart_weights=[1, 0.7, 0.5], eta_min=0.01),
    ReduceOnPlateau=dict(monitor='mAP', rule='greater', patience=1, cooldown=1, factor=0.5),
)  # fmt: skip
CLASSES = [name for name in dir(schedulers) if name.endswith(('LR', 'Momentum')) and isinstance(
    getattr(schedulers, name), type) and issubclass(getattr(schedulers, name), _ParamScheduler)]
CONFIG = """
train_dataloader['dataset']['length'] = 2
train_cfg['max_epochs'] = 8
default_hooks['checkpoint'] = dict(type='CheckpointHook', interval=1)
"""


class Rates(Record):
    """Learning rate and momentum of each iteration."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        group = runner.optim_wrapper.param_groups[0]
        self.lr.append((group['lr'], group.get('momentum'), group.get('betas')))


@pytest.fixture
def plateau(monkeypatch):
    """Scores that depend on the epoch alone, so that an evaluation that is made up gives the same."""
    scores = [0.1, 0.5, 0.4, 0.3, 0.2, 0.6, 0.1, 0.1, 0.1]

    def compute(metric, results):
        from mmengine.logging import MessageHub

        return dict(mAP=scores[MessageHub.get_current_instance().get_info('epoch')])

    monkeypatch.setattr(ToyMetric, 'compute_metrics', compute)


def test_all_schedulers_are_here():
    assert {name.removesuffix('LR').removesuffix('Momentum') for name in CLASSES} == set(OPTIONS)


@pytest.mark.parametrize('optimizer', ['SGD', 'Adam'])
@pytest.mark.parametrize('name', CLASSES)
def test_every_scheduler_stopped_at_each_of_its_phases(tmp_path, train, plateau, capfd, name, optimizer):
    if optimizer == 'Adam' and name.endswith('LR'):
        pytest.skip('its learning rate is as SGD\'s')
    kind = OPTIONS[name.removesuffix('LR').removesuffix('Momentum')]
    momentum = dict(SGD='momentum=0.9', Adam='betas=(0.8, 0.9)')[optimizer]
    text = (f'param_scheduler = [dict(type={name!r}, **{kind})]\n'
            f'optim_wrapper = dict(optimizer=dict(type={optimizer!r}, lr=0.1, {momentum}))\n')
    config = write_config(tmp_path, text=CONFIG + text)
    whole = Rates()
    train(config, 'whole', hooks=[whole])
    assert len(set(whole.lr)) > 1 and len(whole.lr) == EPOCHS
    capfd.readouterr()
    for stop in (1, 2, 4, 5):
        rest = Rates()
        train(config, f'from_{stop}', resume=f'whole/epoch_{stop}.pth', hooks=[rest])
        assert rest.lr == whole.lr[stop:], stop
    assert 'schedule has changed' not in ''.join(capfd.readouterr())


def test_a_plateau_keeps_its_count_when_the_learning_rate_is_changed(tmp_path, train, plateau, capfd):
    text = CONFIG + f"param_scheduler = [dict(type='ReduceOnPlateauLR', **{OPTIONS['ReduceOnPlateau']})]\n"
    config = write_config(tmp_path, text=text)
    whole, rest = Rates(), Rates()
    train(config, 'whole', {'optim_wrapper.optimizer.lr': 0.2}, hooks=[whole])
    train(config, 'half', {'train_cfg.max_epochs': 6})
    capfd.readouterr()
    train(config, 'half', {'optim_wrapper.optimizer.lr': 0.2}, resume=True, hooks=[rest])
    assert [lr for lr, *_ in rest.lr] == pytest.approx([lr for lr, *_ in whole.lr[6:]])
    assert 'lr 0.1 -> 0.2' in ''.join(capfd.readouterr())


def test_a_setting_that_a_scheduler_keeps_in_another_form_is_noticed(tmp_path, train, capfd):
    options = dict(OPTIONS['OneCycle'])
    config = write_config(tmp_path, text=CONFIG + f"param_scheduler = [dict(type='OneCycleLR', **{options})]\n")
    train(config, 'a', {'train_cfg.max_epochs': 4})
    whole, rest = Rates(), Rates()
    changed = {'param_scheduler.0.pct_start': 0.5}
    train(config, 'whole', changed, hooks=[whole])
    capfd.readouterr()
    train(config, 'a', changed, resume=True, hooks=[rest])
    assert 'OneCycleLR._schedule_phases' in ''.join(capfd.readouterr())
    assert [lr for lr, *_ in rest.lr] == pytest.approx([lr for lr, *_ in whole.lr[4:]])


@pytest.mark.parametrize('was, now', [('AdamW', 'SGD'), ('SGD', 'AdamW'), ('SGD', 'RMSprop')])
def test_another_optimizer_is_one_line(tmp_path, train, was, now):
    text = "optim_wrapper = dict(optimizer=dict(type='{}', lr=0.1))\nparam_scheduler = None\n"
    train(write_config(tmp_path, text=CONFIG + text.format(was)), 'a', {'train_cfg.max_epochs': 1})
    with pytest.raises(UserError, match=f'--resume: the config has the optimizer {now}, the checkpoint .* another'):
        train(write_config(tmp_path, text=CONFIG + text.format(now)), 'a', resume=True)


def test_adam_and_adamw_keep_the_same_state(tmp_path, train, capfd):
    text = "optim_wrapper = dict(optimizer=dict(type='{}', lr=0.1))\nparam_scheduler = None\n"
    train(write_config(tmp_path, text=CONFIG + text.format('Adam')), 'a', {'train_cfg.max_epochs': 1})
    train(write_config(tmp_path, text=CONFIG + text.format('AdamW')), 'a', resume=True)
    assert 'weight_decay 0 -> 0.01' in ''.join(capfd.readouterr())


@pytest.mark.parametrize('optimizer', ['SGD', 'AdamW'])
@pytest.mark.parametrize('state, why', [
    (dict(x=1), "'x' instead of"), (dict(step=torch.tensor(4.0), exp_avg=torch.zeros(9, 9)), ''),
    (dict(momentum_buffer='x', step='x', exp_avg='x'), ''),
    (dict(momentum_buffer=torch.zeros(2, 2), step=torch.tensor(4.0)), ''),
])  # fmt: skip
def test_a_state_that_the_optimizer_cannot_go_on_with_is_one_line(tmp_path, train, optimizer, state, why):
    text = f"optim_wrapper['optimizer'] = dict(type='{optimizer}', lr=0.1)\n"
    text += "optim_wrapper['optimizer']['momentum'] = 0.9\n" if optimizer == 'SGD' else ''
    config = write_config(tmp_path, text=text)
    train(config, 'a', {'train_cfg.max_epochs': 1})
    content = torch.load('a/epoch_1.pth', weights_only=True)
    content['optimizer']['state'][2] = state
    torch.save(content, 'a/epoch_1.pth')
    with pytest.raises(UserError, match=f'--resume: a/epoch_1.pth holds no state of {optimizer} for weight 2.*{why}'):
        train(config, 'a', resume=True)


def test_an_optimizer_without_its_state_is_said(tmp_path, train, capfd):
    config = write_config(tmp_path)
    train(config, 'a', {'train_cfg.max_epochs': 1})
    content = torch.load('a/epoch_1.pth', weights_only=True)
    content['optimizer']['state'], content['meta']['iter'] = {}, 10**9  # which a schedule is not stepped through
    torch.save(content, 'a/epoch_1.pth')
    train(config, 'a', {'optim_wrapper.optimizer.lr': 0.2}, resume=True)
    assert 'a/epoch_1.pth holds no state of SGD: its running means begin anew' in ''.join(capfd.readouterr())


def test_other_groups_of_weights_are_one_line(tmp_path, train):
    config = write_config(tmp_path, text=CONFIG + "optim_wrapper['optimizer']['weight_decay'] = 0.1\n")
    train(config, 'a', {'train_cfg.max_epochs': 1})
    with pytest.raises(UserError, match=r"--resume: the config's optimizer has groups of \[1, 1"):
        train(config, 'a', {'optim_wrapper.paramwise_cfg': dict(norm_decay_mult=0.0)}, resume=True)


class AllRates(Record):
    """Learning rates of all groups, the one last that mmengine keeps beside several."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.lr.append([group['lr'] for group in runner.optim_wrapper.param_groups])


@pytest.mark.parametrize('changed, said', [
    ({}, ': MultiStepLR.end 4 -> 8;'), ({'optim_wrapper.optimizer.lr': 0.3}, 'lr 0.1 -> 0.3;'),
    ({'optim_wrapper.paramwise_cfg.bias_lr_mult': 3.0}, 'lr 0.2 -> 0.3'),  # not of the first group
    ({'optim_wrapper.paramwise_cfg.bias_decay_mult': 3.0}, 'weight_decay 0.1 -> 0.3'),
])  # fmt: skip
def test_several_groups_of_weights_go_on(tmp_path, train, capfd, changed, said):
    """As `paramwise_cfg` makes them; under the config's own rates and under changed ones."""
    text = ("optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, weight_decay=0.1), "
            'paramwise_cfg=dict(bias_lr_mult=2.0, bias_decay_mult=1.0))\n'
            "param_scheduler = [dict(type='MultiStepLR', milestones=[2, 5], gamma=0.5)]\n")
    config = write_config(tmp_path, text=CONFIG + text)
    train(config, 'a', {'train_cfg.max_epochs': 4})
    whole, rest = AllRates(), AllRates()
    train(config, 'whole', changed, hooks=[whole])
    capfd.readouterr()
    resumed = train(config, 'a', changed, resume=True, hooks=[rest])
    assert said in next(line for line in capfd.readouterr().out.splitlines() if 'the schedule has changed' in line)
    decays = {group['weight_decay'] for group in resumed.optim_wrapper.param_groups}
    assert max(decays) == pytest.approx(0.3 if 'weight' in said else 0.1)
    assert len({*whole.lr[0]}) == 2
    torch.testing.assert_close(torch.tensor(rest.lr), torch.tensor(whole.lr[4:]))
