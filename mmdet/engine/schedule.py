"""Learning rates: of a resumed run whose config has changed, and of another batch size.

mmengine 0.10.7 restores the schedulers and the optimizer's settings from the checkpoint and silently ignores
what the config says now. Can go when it applies the config's, or says that it does not.
"""

import copy
import inspect
from collections import Counter, defaultdict
from typing import Any

import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper, OptimWrapperDict, _ParamScheduler
from mmengine.runner import Runner
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from mmdet.checkpoints import Checkpoint
from mmdet.config.errors import UserError, at_most, one_line, say

_NO_SETTINGS = {'last_step', 'verbose'}  # though parameters
_DERIVED = {'_schedule_phases', 'min_values'}  # from parameters that a scheduler does not keep


def _settings(scheduler: _ParamScheduler, state: dict) -> dict[str, Any]:
    """What the config says of a scheduler, out of its state: attributes named as parameters of its class."""
    classes = [cls for cls in type(scheduler).__mro__ if '__init__' in vars(cls)]
    names = {name for cls in classes for name in inspect.signature(cls.__init__).parameters} - _NO_SETTINGS
    return {key: value for key, value in state.items() if key in names | _DERIVED}


def _shown(value: Any) -> Any:
    return sorted(value.elements()) if isinstance(value, Counter) else value


def keep_new_schedule(runner: Runner, checkpoint: Checkpoint) -> None:
    """Where the config's schedule or optimizer settings differ from the checkpoint's, apply the config's.

    The learning rate becomes what the new schedule gives at the resumed iteration; one line says so.

    Raises:
        UserError: the checkpoint is of another optimizer, or what it holds of it is damaged.
    """
    schedulers = runner.param_schedulers or []
    if not isinstance(schedulers, list) or not isinstance(runner.optim_wrapper, OptimWrapper):
        return  # several optimizers: mmengine's behaviour
    saved_states = checkpoint.get('param_schedulers') or []
    changes = _schedule_changes(schedulers, saved_states)
    state = checkpoint['optimizer']
    _check_optimizer(runner.optim_wrapper.optimizer, state['param_groups'])
    # of several groups the wrapper's last is none of the optimizer's: mmengine keeps the rate without multipliers there
    groups = runner.optim_wrapper.param_groups
    saved_groups = [*state['param_groups'], *filter(None, [state.get('base_param_settings')])]
    _check_state(runner.optim_wrapper.optimizer, checkpoint)
    names = {scheduler.param_name for scheduler in schedulers} | {'lr'}
    scheduled = {prefix + name for name in names for prefix in ('', 'initial_', 'max_', 'min_')} | {'params'}
    if 'momentum' in names:
        scheduled.add('betas')  # Adam's momentum
    changed = {}  # what is said of each setting: the first group in which it differs
    for group, saved in zip(groups, saved_groups):
        was, now = (some.get('initial_lr', some['lr']) for some in (saved, group))
        if was != now:
            changed.setdefault('lr', f'lr {was} -> {now}')
        for key in sorted(set(group) & set(saved) - scheduled):
            if group[key] != saved[key]:
                changed.setdefault(key, f'{key} {saved[key]} -> {group[key]}')
                saved[key] = group[key]
    changes += changed.values()
    if not changes:
        return
    if any(getattr(scheduler, 'need_val_args', False) for scheduler in schedulers):
        _keep_progress(schedulers, saved_states, groups, saved_groups)
    else:
        _replay(schedulers, min(checkpoint['meta']['epoch'], runner.max_epochs),
                min(checkpoint['meta']['iter'], runner.max_iters))
        checkpoint['param_schedulers'] = [scheduler.state_dict() for scheduler in schedulers]
        for group, saved in zip(groups, saved_groups):
            saved.update({key: group[key] for key in scheduled - {'params'} if key in group})
    say(f'the schedule has changed since the checkpoint: {at_most(changes, 6)}; the new one continues with '
        f'lr {saved_groups[0]["lr"]:.6g} at epoch {checkpoint["meta"]["epoch"] + 1}')


def _check_optimizer(optimizer: Optimizer, saved_groups: list[dict]) -> None:
    numbers = {key for key, value in optimizer.defaults.items()  # torch adds switches, which an older file lacks
               if isinstance(value, (int, float, tuple)) and not isinstance(value, bool)}
    ours, saved = ([len(group['params']) for group in some] for some in (optimizer.param_groups, saved_groups))
    if numbers - set(saved_groups[0]):
        why = f'the config has the optimizer {type(optimizer).__name__}, the checkpoint was written with another'
    elif ours != saved:
        why = f"the config's optimizer has groups of {ours} weights, the checkpoint's {saved}"
    else:
        return
    raise UserError(f'--resume: {why}. Resume with the config of that training, or start a new one from its weights: '
                    '--cfg-options load_from=FILE, without --resume')


def _check_state(optimizer: Optimizer, checkpoint: Checkpoint) -> None:
    """Refuse a state of the weights with which the optimizer's next step would fail: a step is tried, on zeros."""
    saved = checkpoint['optimizer']
    states = saved['state']
    weights = [(group, weight, states.get(number), number)
               for group, saved_group in zip(optimizer.param_groups, saved['param_groups'])
               for weight, number in zip(group['params'], saved_group['params'])]  # fmt: skip
    for group, weight, state, number in weights:
        why = None
        try:
            if not state or _after_a_step(optimizer, group, weight, state).keys() == state.keys():
                continue
        except Exception as error:
            why = f'{type(error).__name__}: {one_line(error)}'
        kept = _begun(optimizer, group, weight)
        if kept is None:
            return
        if kept and not kept & state.keys():
            why = f'{at_most(map(repr, state), 3)} instead of {at_most(map(repr, kept), 3)}'
        if why is not None:
            raise UserError(f'--resume: {checkpoint} holds no state of {type(optimizer).__name__} for weight {number} '
                            f'of shape {tuple(weight.shape)} ({why}). Resume from an older checkpoint, --resume FILE, '
                            'or start a new training from its weights: --cfg-options load_from=FILE')
    if not states and weights and _begun(optimizer, *weights[0][:2]):
        say(f'{checkpoint} holds no state of {type(optimizer).__name__}: its running means begin anew')


def _begun(optimizer: Optimizer, group: dict, weight: Tensor) -> set | None:
    """What an optimizer keeps of a weight after its first step; None for one that cannot be tried so."""
    try:
        return set(_after_a_step(optimizer, group, weight, {}))
    except Exception:
        return None


def _after_a_step(optimizer: Optimizer, group: dict, weight: Tensor, state: dict) -> dict:
    """The optimizer's state of one weight after a step, of copies, with a gradient of zeros."""
    weight = torch.zeros(weight.shape, dtype=weight.dtype, requires_grad=True)
    weight.grad = torch.zeros_like(weight)
    tried = copy.copy(optimizer)
    tried.param_groups, tried.state = [dict(group, params=[weight])], defaultdict(dict, {weight: copy.deepcopy(state)})
    tried.step()
    return tried.state[weight]


def _schedule_changes(schedulers: list[_ParamScheduler], saved: list[dict]) -> list[str]:
    if len(schedulers) != len(saved):
        return [f'{len(saved)} schedulers -> {len(schedulers)}']
    changes = []
    for scheduler, state in zip(schedulers, saved):
        now, was = _settings(scheduler, scheduler.state_dict()), _settings(scheduler, state)
        for key in sorted(set(now) | set(was)):
            if now.get(key) != was.get(key):
                changes.append(f'{type(scheduler).__name__}.{key} {_shown(was.get(key))} -> {_shown(now.get(key))}')
    return changes


def _keep_progress(schedulers: list[_ParamScheduler], states: list[dict], groups: list[dict],
                   saved_groups: list[dict]) -> None:
    """Metrics drove the schedule, so it cannot be replayed: new settings, old progress, lr in proportion."""
    for scheduler, state in zip(schedulers, states):
        state.update(_settings(scheduler, scheduler.state_dict()))
    for group, saved in zip(groups, saved_groups):
        if group.get('initial_lr') and saved.get('initial_lr'):
            saved['lr'] *= group['initial_lr'] / saved['initial_lr']
            saved['initial_lr'] = group['initial_lr']


def _replay(schedulers: list[_ParamScheduler], epochs: int, iterations: int) -> None:
    """Step fresh schedulers as the iterations and epochs already done would have."""
    for scheduler in schedulers:
        for _ in range(epochs if scheduler.by_epoch else iterations):
            scheduler.step()


def batch_of_a_process(loader: DataLoader) -> int:
    """Images that a process loads in an iteration."""
    return getattr(loader.batch_sampler, 'batch_size', None) or loader.batch_size


def accumulated(wrapper: OptimWrapper) -> int:
    """Iterations whose gradients a step of the optimizer takes together."""
    return getattr(wrapper, '_accumulative_counts', 1)


def scale_by_batch(runner: Runner, base: int) -> None:
    """Scale learning rates by (images of a step of the optimizer, over all processes and iterations) / `base`.

    mmengine 0.10.7 leaves the accumulated iterations out; can go when it counts them.
    """
    built = runner.optim_wrapper
    wrappers = built.optim_wrappers.values() if isinstance(built, OptimWrapperDict) else [built]
    for wrapper in wrappers:
        images = runner.world_size * batch_of_a_process(runner.train_dataloader) * accumulated(wrapper)
        for group in wrapper.param_groups:  # of several groups, with the rate that is logged as base_lr
            group['lr'] *= images / base
        runner.logger.info(f'--auto-scale-lr: lr becomes {wrapper.optimizer.param_groups[0]["lr"]:.6g}, scaled by '
                           f'{images} images a step / base_batch_size={base}')


def scale_learning_rate(cfg: Config) -> None:
    """Let the Runner do `scale_by_batch`."""
    if not (cfg.get('auto_scale_lr') or {}).get('base_batch_size'):
        raise UserError('--auto-scale-lr: the config has no auto_scale_lr=dict(base_batch_size=N), the batch '
                        'size its learning rate is meant for')
    cfg.auto_scale_lr.enable = True
