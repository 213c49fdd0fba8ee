"""A signal that comes while processes ask each other whether one has come."""

import signal

from mmdet.engine import hooks


def test_a_signal_during_the_agreement_counts_in_the_next_iteration(monkeypatch):
    hook = hooks.StopSafelyHook()
    hook.group = 'two processes'
    left = []
    monkeypatch.setattr(hooks.dist, 'all_reduce', lambda *args, **options: hook._note(signal.SIGTERM, None))
    monkeypatch.setattr(hooks, 'average_norm_statistics', lambda model: None)
    monkeypatch.setattr(hooks, 'model_of', lambda runner: None)
    monkeypatch.setattr(hook, '_leave', lambda runner, epoch, iteration: left.append((hook.signum, iteration)))
    for iteration in (0, 1):
        assert not left
        hook.after_train_iter(Runner(iteration), iteration)
    assert left == [(signal.SIGTERM, 2)]


class Runner:
    epoch = 0

    def __init__(self, iteration: int):
        self.iter = iteration
