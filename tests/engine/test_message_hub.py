"""What is logged of a device's numbers, when they are read, and that nothing waits for them meanwhile."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from other_device import DEVICE, DeviceTensor, OtherDevice
from toy_task import write_config

from mmdet.checkpoints import read_checkpoint
from mmdet.config.errors import UserError
from mmdet.engine import runner as run
from mmdet.engine.hooks.non_finite import NonFiniteLossHook
from mmdet.engine.message_hub import AsyncCopy, DeferredMessageHub, defer_grad_norm

CLOCKS = ('time', 'data_time', 'memory', 'eta')
CONFIG = """
train_dataloader['batch_size'] = 1
optim_wrapper['clip_grad'] = dict(max_norm=1.0)
default_hooks['logger']['interval'] = 3
log_processor = dict(window_size=4, custom_cfg=[
    dict(data_src='loss', log_name='smooth', method_name='mean', window_size='epoch')])
"""


class Event:
    """Of a stream that is always behind: what it marks has happened when somebody waits for it."""

    waits = 0

    def record(self, stream):
        self.happened = False

    def query(self):
        return self.happened

    def synchronize(self):
        Event.waits += not self.happened
        self.happened = True


@pytest.fixture
def accelerator(monkeypatch):
    """Everything trained is on a pretended device, which is asked for its events as CUDA is."""
    monkeypatch.setattr(DeviceTensor, 'is_cuda', True, raising=False)
    monkeypatch.setattr(torch.cuda, 'Event', Event)
    monkeypatch.setattr(torch.cuda, 'current_stream', lambda device: None)

    def wrap_model(runner, cfg, model):
        model.data_preprocessor._device, model.data_preprocessor._non_blocking = DEVICE, True
        return device.move(model)

    with OtherDevice() as device:
        monkeypatch.setattr(run._Runner, 'wrap_model', wrap_model)
        yield device


def logged(work_dir: str) -> list[list[tuple]]:
    """The JSON lines of all starts of a run, items in order, without what a clock or the memory says."""
    lines = [line for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json')) for line in path.open()]
    return [[(k, v) for k, v in json.loads(line).items() if k not in CLOCKS] for line in lines]


def histories(file: str) -> dict:
    scalars = read_checkpoint(file)['message_hub']['log_scalars']
    return {key: [(part.dtype, part.tolist()) for part in history.data]
            for key, history in scalars.items() if key.split('/')[1] not in CLOCKS}


def stock(monkeypatch, train, *args, **kwargs):
    with monkeypatch.context() as patch:
        patch.setattr(run, '_Runner', Runner)
        return train(*args, **kwargs)


@pytest.mark.filterwarnings('ignore:.*copying from a non-meta parameter')  # it is copied
@pytest.mark.parametrize('epochs', [2, 3])
def test_the_log_is_mmengines_own(tmp_path, train, monkeypatch, request, epochs):
    config = write_config(tmp_path, text=CONFIG)
    options = {'train_cfg.max_epochs': epochs}
    assert type(stock(monkeypatch, train, config, 'theirs').message_hub) is MessageHub
    if epochs > 2:
        stock(monkeypatch, train, config, 'theirs', options, resume=True)
    request.getfixturevalue('accelerator')
    train(config, 'ours')
    if epochs > 2:
        runner = train(config, 'ours', options, resume=True)
        assert type(runner.message_hub) is DeferredMessageHub is type(runner.optim_wrapper.message_hub)
    ours, theirs = logged('ours'), logged('theirs')
    assert ours == theirs and len(ours) == 3 * epochs
    assert [key for key, _ in ours[0]] == ['lr', 'grad_norm', 'loss', 'loss_toy', 'loss_zero', 'smooth', 'epoch',
                                              'iter', 'step']  # fmt: skip
    for file in (f'epoch_{epochs}.pth', next(Path('ours').glob('best_*')).name):
        assert histories(f'ours/{file}') == histories(f'theirs/{file}')
    assert len(histories('ours/epoch_2.pth')['train/grad_norm'][0][1]) == 16


class Waits(Hook):
    """What each iteration waited for, its hooks included."""

    def __init__(self, device):
        self.device, self.seen = device, []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.seen.append(dict(self.device.waits, events=Event.waits))

    def of_iterations(self) -> list[dict]:
        return [{k: n - before.get(k, 0) for k, n in after.items() if n != before.get(k, 0)}
                for before, after in zip(self.seen, self.seen[1:])]


def test_nothing_is_read_between_log_lines(tmp_path, train, accelerator):
    text = CONFIG + "custom_hooks = [dict(type='EMAHook', momentum=0.5)]\n"
    hook = Waits(accelerator)
    train(write_config(tmp_path, text=text), 'a', {'train_cfg.max_epochs': 1}, hooks=[hook])
    line = dict(tolist=1)  # all numbers since the last one
    assert hook.of_iterations() == [{}, {}, line, {}, {}, line, {}]


BAD = {'train_dataloader.dataset.bad_item': 3, 'train_dataloader.sampler.shuffle': False}


@pytest.mark.parametrize('saved', [False, True])
def test_a_loss_found_late_is_found_before_a_checkpoint(tmp_path, train, accelerator, saved):
    """Item 3 is the fourth iteration's. The device is so late that nothing arrives before somebody waits for it."""
    text = CONFIG.replace("['interval'] = 3", "['interval'] = 100")
    options = dict(BAD)
    if saved:
        options |= {'default_hooks.checkpoint.by_epoch': False, 'default_hooks.checkpoint.interval': 3}
    hook = Waits(accelerator)
    with pytest.raises(UserError) as caught:
        train(write_config(tmp_path, text=text), 'a', options, hooks=[hook])
    assert re.match(r'the loss is not finite at epoch 1, iteration 4: loss=nan, loss_toy=nan, loss_zero=nan '
                    r'\(images 103; learning rate 0.1\). Training is stopped. '
                    + (r'The last good checkpoint is .*iter_3.pth' if saved else 'No checkpoint had been saved'),
                    str(caught.value))  # fmt: skip
    assert len(hook.seen) == (6 if saved else 8)  # iterations begun
    assert [path.name for path in Path('a').glob('*.pth')] == (['iter_3.pth'] if saved else [])


def test_a_loss_found_late_is_found_before_evaluation_and_the_end(tmp_path, train, accelerator):
    text = CONFIG + "default_hooks['checkpoint'] = dict(type='CheckpointHook', interval=9)\n"
    config = write_config(tmp_path, text=text)
    hook = Waits(accelerator)
    with pytest.raises(UserError, match='the loss is not finite at epoch 1, iteration 4: '):
        train(config, 'a', BAD, hooks=[hook])
    assert len(hook.seen) == 8 and not any('mAP' in dict(line) for line in logged('a'))
    hook = NonFiniteLossHook()
    about = dict(names=['loss'], statistics=[], epoch=1, iteration=4, images=['103'], lr=0.1)
    hook.coming.append((about, AsyncCopy([torch.tensor(float('inf'), device=DEVICE)])))
    with pytest.raises(UserError, match='iteration 4: loss=inf .images 103;'):
        hook.after_train(SimpleNamespace(work_dir=tmp_path, hooks=[]))


def test_a_loss_that_has_arrived_stops_the_next_iteration(tmp_path, train, accelerator, monkeypatch):
    monkeypatch.setattr(Event, 'query', lambda event: True)
    hook = Waits(accelerator)
    with pytest.raises(UserError, match='the loss is not finite at epoch 1, iteration 4: '):
        train(write_config(tmp_path, text=CONFIG), 'a', BAD, hooks=[hook])
    assert len(hook.seen) == 4


def test_iterations_that_may_go_wrong_are_counted_in_order(tmp_path, train, accelerator):
    guard = "custom_hooks = [dict(type='NonFiniteLossHook', allowed={})]\n"
    bad_weights = 'stem.weight holds NaN or infinity at iteration 8 .last images 107.: no checkpoint is written'
    with pytest.raises(UserError, match=bad_weights):
        train(write_config(tmp_path, text=CONFIG + guard.format(5)), 'a', BAD)  # the last five of eight
    with pytest.raises(UserError, match='the loss is not finite at epoch 1, iteration 8: '):
        train(write_config(tmp_path, text=CONFIG + guard.format(4)), 'b', BAD)


@pytest.fixture(params=['pretended', pytest.param('cuda', marks=pytest.mark.cuda)])
def away(request) -> torch.device:
    if request.param == 'cuda':
        return torch.device('cuda')
    request.getfixturevalue('accelerator')
    return DEVICE


@pytest.fixture
def hub():
    yield DeferredMessageHub.get_instance('late')
    del DeferredMessageHub._instance_dict['late']


def test_the_hub_has_what_mmengines_has(away, hub):
    theirs = MessageHub('theirs')
    numbers = [(key, torch.tensor(value, dtype=dtype), count)
               for value in (0.1, float('inf'), 0.3)
               for key, dtype, count in (('a', torch.float32, 1), ('b', torch.float16, 2), ('c', torch.float64, 1))]
    numbers += [('n', torch.tensor(2**40 + 1), 1), ('a', 5, 1), ('b', torch.tensor([[0.2]]), 1)]
    for key, value, count in numbers:
        theirs.update_scalar(key, value, count)
        hub.update_scalar(key, value.to(away) if isinstance(value, torch.Tensor) else value, count)
    assert hub.get_scalar('n').current() == 2**40 + 1 and set(hub._late) == {'b'}  # asking for one reads no other
    assert hub.get_scalar('b').data[1].tolist() == [2, 2, 2, 1] and not hub._late
    assert list(hub.log_scalars) == list(theirs.log_scalars) == ['a', 'b', 'c', 'n']
    for ours, others in zip(hub.log_scalars.values(), theirs.log_scalars.values()):
        for mine, part in zip(ours.data, others.data):
            assert mine.dtype == part.dtype and mine.tolist() == part.tolist()
    assert MessageHub.get_current_instance() is hub
    with pytest.raises(KeyError, match='missing is not found'):
        hub.get_scalar('missing')


def test_the_hub_reads_when_a_history_is_asked_for_or_too_long(away, hub):
    for value in range(DeferredMessageHub.most + 2):
        hub.update_scalar('a', torch.tensor(float(value), device=away))
    assert len(hub._late['a']) == 2
    assert hub.state_dict()['log_scalars']['a'].data[0].tolist() == list(range(DeferredMessageHub.most + 2))
    hub.update_scalar('a', torch.tensor(0.5, device=away))
    assert hub.log_scalars['a'].mean(2) == (DeferredMessageHub.most + 1.5) / 2


def test_numbers_arrive(away):
    coming = AsyncCopy([torch.tensor([1.5], device=away), 2, torch.tensor(float('nan'), device=away), 0.25])
    assert str(coming.tolist()) == '[1.5, 2.0, nan, 0.25]' and coming.arrived() and coming.numbers.device.type == 'cpu'
    assert AsyncCopy([1, torch.tensor(2.5)]).tolist() == [1, 2.5]


@pytest.mark.cuda
def test_a_gpu_is_not_waited_for(hub):
    values = torch.rand(3, device='cuda').unbind()
    torch.cuda.set_sync_debug_mode('error')
    try:
        for value in values:
            hub.update_scalar('a', value)
        coming = AsyncCopy(values)
        coming.arrived()
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert coming.tolist() == hub.get_scalar('a').data[0].tolist()


@pytest.mark.parametrize('kind', ['norm', 'value'])
def test_the_norm_is_logged_late(away, hub, kind):
    weight = torch.nn.Parameter(torch.ones(3, device=away))
    limit = dict(max_norm=1.0) if kind == 'norm' else dict(clip_value=1.0)
    wrapper = OptimWrapper(torch.optim.SGD([weight], 0.1), clip_grad=dict(type=kind, **limit))
    defer_grad_norm(wrapper)
    wrapper.update_params((weight * 4).sum())
    assert list(hub._late) == (['train/grad_norm'] if kind == 'norm' else [])
    assert [history.current() for history in hub.log_scalars.values()] == ([pytest.approx(48**0.5)] * (kind == 'norm'))
    assert torch.allclose(weight.cpu(), torch.tensor(1 - 0.1 * (3**-0.5 if kind == 'norm' else 1)))
