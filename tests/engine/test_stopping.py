"""Signals: several processes stop at one iteration, and formatting the config is no moment of its own."""

import signal

import pytest
import torch
import yapf.yapflib.yapf_api
from toy_task import write_config

from mmdet.config.load import load_config
from mmdet.engine.hooks import stopping as hooks


class Runner:
    epoch = 0

    def __init__(self, iteration: int):
        self.iter = iteration


class Work:
    """An exchange that ends when it is waited for, and not before."""

    def __init__(self, agree):
        self.wait = agree


@pytest.mark.parametrize('moment', ['before it asks', 'while it asks', 'while it waits for the answer'])
def test_a_signal_is_heard_by_all(monkeypatch, moment):
    processes = [hooks.StopSafelyHook() for _ in range(2)]
    asked, left = [], []

    def all_reduce(own, op, group, async_op):
        asked.append(own)
        if moment == 'while it asks' and len(asked) == 3:  # the first process in the second iteration
            processes[0]._note(signal.SIGTERM, None)
        number = (len(asked) - 1) // 2

        def agree():
            if moment == 'while it waits for the answer' and number == 0 and own is asked[0]:
                processes[0]._note(signal.SIGTERM, None)
            own.copy_(torch.stack(asked[2 * number : 2 * number + 2]).amax(0))

        return Work(agree)

    monkeypatch.setattr(hooks.dist, 'all_reduce', all_reduce)
    for rank, hook in enumerate(processes):
        hook.group = 'two processes'

        def leave(runner, signum, iteration, place, rank=rank):
            left.append((rank, signum, iteration))

        monkeypatch.setattr(hook, '_leave', leave)
    for iteration in range(5):
        if moment == 'before it asks' and iteration == 1:
            processes[0]._note(signal.SIGTERM, None)
        for hook in processes:
            if not any(rank == processes.index(hook) for rank, *_ in left):
                hook.after_train_iter(Runner(iteration), iteration)
    stop = {'before it asks': 3, 'while it asks': 4, 'while it waits for the answer': 3}[moment]
    assert left == [(0, signal.SIGTERM, stop), (1, signal.SIGTERM, stop)]


def test_the_config_is_formatted_once_before_training(tmp_path, train, monkeypatch):
    """mmengine would do so at each save (seconds), and make a SyntaxError of a signal that arrives meanwhile."""
    calls = []
    code = yapf.yapflib.yapf_api.FormatCode

    def format_by(function):  # mmengine takes it when it is imported, its fork when it is called
        monkeypatch.setattr('yapf.yapflib.yapf_api.FormatCode', function)
        monkeypatch.setattr('mmengine.config.config.FormatCode', function, raising=False)

    format_by(lambda *args, **options: calls.append(1) or code(*args, **options))
    config = write_config(tmp_path)
    runner = train(config, 'a')
    assert len(calls) == 1 and runner.cfg.pretty_text == load_config('a/toy.py').pretty_text
    assert torch.load('a/epoch_2.pth', weights_only=True)['meta']['cfg'] == runner.cfg.pretty_text

    def signalled(*args, **options):
        raise KeyboardInterrupt

    format_by(signalled)
    with pytest.raises(KeyboardInterrupt):
        train(config, 'b')
