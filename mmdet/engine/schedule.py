"""Resuming with another schedule than the checkpoint's.

mmengine 0.10.7 restores the schedulers and the optimizer's settings from the file and silently ignores
what the config says now. Can go when it applies the config's, or says that it does not.
"""

from collections import Counter
from typing import Any

from mmengine.config import Config
from mmengine.optim import OptimWrapper, _ParamScheduler
from mmengine.runner import Runner

from mmdet.config.errors import UserError, at_most, say

_PROGRESS = {'last_step', '_global_step', '_last_value', 'verbose', 'base_values'}


def _settings(state: dict) -> dict[str, Any]:
    return {k: v for k, v in state.items() if k not in _PROGRESS}


def _shown(value: Any) -> Any:
    return sorted(value.elements()) if isinstance(value, Counter) else value


def keep_new_schedule(runner: Runner, checkpoint: dict) -> None:
    """Where the config's schedule or optimizer settings differ from the checkpoint's, apply the config's.

    The learning rate becomes what the new schedule gives at the resumed iteration; one line says so.
    """
    schedulers = runner.param_schedulers
    if not isinstance(schedulers, list) or not isinstance(runner.optim_wrapper, OptimWrapper):
        return  # several optimizers: mmengine's behaviour
    changes = _schedule_changes(schedulers, checkpoint.get('param_schedulers') or [])
    groups, saved_groups = runner.optim_wrapper.param_groups, checkpoint['optimizer']['param_groups']
    if len(groups) != len(saved_groups):
        return  # load_state_dict refuses it with its own message
    was, now = (group.get('initial_lr', group['lr']) for group in (saved_groups[0], groups[0]))
    if was != now:
        changes.append(f'lr {was} -> {now}')
    scheduled = {scheduler.param_name for scheduler in schedulers} | {'lr', 'initial_lr', 'params'}
    for number, (group, saved) in enumerate(zip(groups, saved_groups)):
        for key in set(group) & set(saved) - scheduled:
            if group[key] != saved[key] and not key.startswith('initial_'):
                if number == 0:
                    changes.append(f'{key} {saved[key]} -> {group[key]}')
                saved[key] = group[key]
    if not changes:
        return
    _replay(schedulers, checkpoint['meta']['epoch'], checkpoint['meta']['iter'])
    checkpoint['param_schedulers'] = [scheduler.state_dict() for scheduler in schedulers]
    for group, saved in zip(groups, saved_groups):
        for key in scheduled - {'params'}:
            if key in group:
                saved[key] = group[key]
    say(f'the schedule has changed since the checkpoint: {at_most(changes, 6)}; the new one goes on with '
        f'lr {groups[0]["lr"]:.6g} at epoch {checkpoint["meta"]["epoch"] + 1}')


def _schedule_changes(schedulers: list[_ParamScheduler], saved: list[dict]) -> list[str]:
    if len(schedulers) != len(saved):
        return [f'{len(saved)} schedulers -> {len(schedulers)}']
    changes = []
    for scheduler, state in zip(schedulers, saved):
        now, was = _settings(scheduler.state_dict()), _settings(state)
        for key in sorted(set(now) | set(was)):
            if now.get(key) != was.get(key):
                changes.append(f'{type(scheduler).__name__}.{key} {_shown(was.get(key))} -> {_shown(now.get(key))}')
    return changes


def _replay(schedulers: list[_ParamScheduler], epochs: int, iterations: int) -> None:
    """Step fresh schedulers as the iterations and epochs already done would have."""
    for scheduler in schedulers:
        for _ in range(epochs if scheduler.by_epoch else iterations):
            scheduler.step()


def scale_learning_rate(cfg: Config) -> None:
    """Let the Runner scale the learning rate by (batch of all processes) / ``base_batch_size``."""
    if not (cfg.get('auto_scale_lr') or {}).get('base_batch_size'):
        raise UserError('--auto-scale-lr: the config has no auto_scale_lr=dict(base_batch_size=N), the batch '
                        'size its learning rate is meant for')
    cfg.auto_scale_lr.enable = True
