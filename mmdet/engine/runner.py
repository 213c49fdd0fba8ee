"""From a checked config to a mmengine Runner: work folder, seed, safe hooks, quiet start."""

import errno
import fcntl
import itertools
import logging
import os
import shutil
import socket
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from mmengine import dist
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner

from mmdet.checkpoints import files as _checkpoint
from mmdet.config.errors import UserError, at_most, registered_names, say, suggest, unknown_type
from mmdet.config.load import changed_keys, type_places
from mmdet.config.output import check_writable
from mmdet.engine.scalars import LateMessageHub, log_norm_late
from mmdet.engine.seeding import seeded_dataloader

# Keys that say how or where a run happens, not what it computes.
_HOW = {'work_dir', 'resume', 'load_from', 'launcher', 'log_level', 'visualizer', 'vis_backends', 'env_cfg',
        'experiment_name', 'model_wrapper_cfg', 'log_processor', 'default_scope', 'randomness'}
# Hooks every run needs; a config may list one itself to set its options.
_ESSENTIAL = ('StepSeedHook', 'NonFiniteLossHook', 'SyncNormStatsHook', 'RunInfoHook', 'StopSafelyHook')

_runs = itertools.count()
_locks: dict[str, Any] = {}  # open lock files of work folders


# ---------------------------------------------------------------------- work folder


def on_rank_0(function: Callable[[], Any]) -> Any:
    """Run a function on rank 0 alone; all ranks get its result, or raise the UserError it raised."""
    answer: list = [None, None]
    if dist.get_rank() == 0:
        try:
            answer[0] = function()
        except (UserError, FileNotFoundError) as error:
            answer[1] = str(error)
    dist.broadcast_object_list(answer)
    if answer[1] is not None:
        raise UserError(answer[1])
    return answer[0]


def _lock(work_dir: str) -> None:
    """Keep other processes from training into the same folder, as long as this one lives (however it ends).

    Raises:
        UserError: another process does.
    """
    path = os.path.abspath(os.path.join(work_dir, '.lock'))
    file = _locks.get(path) or open(path, 'a+')
    try:
        # POSIX's kind: workers do not inherit it, and shared file systems know it
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            return  # a file system without locks
        file.seek(0)
        raise UserError(f'--work-dir {work_dir}: another run is training there ({file.read().strip()}); wait for it, '
                        'or use another folder') from error
    _locks[path] = file  # closing it would end the lock
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}')
    file.flush()


def enter_work_dir(cfg: Config, resume: bool | str) -> str | None:
    """Make sure that training into ``cfg.work_dir`` loses nothing; returns the checkpoint to resume from.

    - An earlier run with another config: refused, unless resuming.
    - An earlier run with the same config: its checkpoints are moved into its own time-stamped folder.
    - ``resume=True``: the newest checkpoint that loads, or None where there is none.

    Raises:
        UserError: another config, another process training there, or a checkpoint that cannot be resumed.
    """
    work_dir = cfg.work_dir
    if os.path.exists(work_dir) and not os.path.isdir(work_dir):
        raise UserError(f'--work-dir {work_dir} is a file')
    check_writable(work_dir, '--work-dir')
    _lock(work_dir)
    if isinstance(resume, str):
        if not _checkpoint.is_resumable(_checkpoint.read_checkpoint(resume)):
            raise UserError(f'--resume {resume}: the file holds no state of a training with this toolbox, at most '
                            f'weights; to start a new training from them use --cfg-options load_from={resume}')
        return resume
    if resume:
        newest = _checkpoint.newest_resumable(work_dir)
        if newest is None:
            print(f'nothing to resume in {work_dir}: training starts from the beginning', flush=True)
        return newest
    own = os.path.join(work_dir, os.path.basename(cfg.filename or ''))
    if cfg.filename and os.path.abspath(cfg.filename) == os.path.abspath(own) and '_base_' in Path(own).read_text():
        raise UserError(f'{own} would be replaced by its resolved form; use another --work-dir')
    _set_earlier_run_aside(cfg)
    return None


def _set_earlier_run_aside(cfg: Config) -> None:
    folder = Path(cfg.work_dir)
    weights = sorted(folder.glob('*.pth')) if folder.is_dir() else []
    if not weights:
        return
    for dumped in sorted(folder.glob('*.py'), key=os.path.getmtime, reverse=True)[:1]:
        try:
            earlier = Config.fromfile(dumped, lazy_import=False).to_dict()
        except Exception:
            raise UserError(f'{folder} holds the checkpoints of a run whose config {dumped.name} cannot be '
                            'read; use --work-dir for a new folder') from None
        changed = changed_keys(earlier, cfg.to_dict(), _HOW)
        if changed:
            raise UserError(f'{folder} holds a run with another config (differs in {at_most(changed, 5)}). Use '
                            '--work-dir for a new folder, or --resume to continue that run with this config')
    runs = sorted(d for d in folder.iterdir() if d.is_dir() and d.name[:8].isdigit())
    aside = runs[-1] if runs else folder / time.strftime('%Y%m%d_%H%M%S')
    aside.mkdir(exist_ok=True)
    for path in [*weights, folder / 'last_checkpoint']:
        if path.exists():
            shutil.move(path, aside / path.name)
    print(f'{folder}: moved {len(weights)} checkpoints of the earlier run to {aside}', flush=True)


# ---------------------------------------------------------------------- the Runner


def set_seed(cfg: Config, seed: int | None, deterministic: bool, resumed: str | None) -> None:
    """Fix the run's seed before anything is built: the asked, the resumed, the config's, or a random one.

    mmengine draws it after the samplers are built when resuming, so that they shuffle otherwise.
    """
    randomness = cfg.get('randomness') or {}
    asked = randomness.get('seed') if seed is None else seed
    seed = asked
    if resumed is not None:
        seed = on_rank_0(lambda: _checkpoint.read_checkpoint(resumed)['meta'].get('seed', asked))
        if asked is not None and asked != seed:
            say(f'seed {seed} of {resumed} goes on; the asked seed {asked} would break its sequence')
    if seed is None:
        seed = dist.sync_random_seed()
    deterministic = deterministic or randomness.get('deterministic', False)
    if deterministic:
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # cuBLAS refuses to run without
    # The same seed on all ranks gives one initial model; StepSeedHook lets them differ afterwards.
    cfg.randomness = dict(seed=seed, deterministic=deterministic)


def use_amp(cfg: Config) -> None:
    """Switch the optimizer wrapper to mixed precision: float16 with loss scaling on GPU, bfloat16 on CPU."""
    kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if kind in ('AmpOptimWrapper', 'CpuAmpOptimWrapper'):
        return
    if kind != 'OptimWrapper':
        raise UserError(f'--amp works with optim_wrapper.type=OptimWrapper, the config has {kind}')
    if torch.cuda.is_available():
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    else:
        cfg.optim_wrapper.type = 'CpuAmpOptimWrapper'


def scale_learning_rate(cfg: Config) -> None:
    """Let the Runner scale the learning rate by (batch of all processes) / ``base_batch_size``."""
    if not (cfg.get('auto_scale_lr') or {}).get('base_batch_size'):
        raise UserError('--auto-scale-lr: the config has no auto_scale_lr=dict(base_batch_size=N), the batch '
                        'size its learning rate is meant for')
    cfg.auto_scale_lr.enable = True


class _Runner(Runner):
    """mmengine's, which does not wait for a GPU in every iteration to log it."""

    def build_message_hub(self, message_hub: dict | None = None) -> LateMessageHub:
        return LateMessageHub.get_instance(**(message_hub or dict(name=self._experiment_name)))

    def build_optim_wrapper(self, optim_wrapper) -> OptimWrapper:
        built = super().build_optim_wrapper(optim_wrapper)
        if built is not optim_wrapper:  # mmengine asks again when resuming
            for wrapper in built.optim_wrappers.values() if isinstance(built, OptimWrapperDict) else [built]:
                if wrapper.clip_grad_kwargs:
                    log_norm_late(wrapper)
        return built


def build_runner(cfg: Config, launcher: str = 'none', resume_from: str | None = None,
                 checkpoint: str | None = None) -> Runner:
    """A Runner that saves and loads safely, whatever hooks the config names.

    Args:
        resume_from: checkpoint to continue training from.
        checkpoint: weights to test; every weight must fit.
    """
    # mmengine 0.10 passes an argument that torch 2.15 is about to rename; can go when mmengine follows.
    warnings.filterwarnings('ignore', '`broadcast_buffers` is deprecated', FutureWarning)
    warnings.filterwarnings('ignore', 'This DataLoader will create', UserWarning)  # more workers than cores
    warnings.filterwarnings('ignore', r'`torch\.cuda\.amp\.GradScaler', FutureWarning)  # mmengine's name for it
    # mmengine restores the schedulers' step counts of a resumed run, and not the optimizer's
    warnings.filterwarnings('ignore', r'Detected call of `scheduler.step\(\)` before', UserWarning)
    _checkpoint.install()
    source = checkpoint or resume_from or cfg.get('load_from')
    parts = ConfigDict({key: value for key, value in cfg.to_dict().items() if key in _RUNNER_KEYS})
    if resume_from or checkpoint:
        drop_pretrained(parts.model)
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if parts.get(key) and not parts[key].get('num_workers', 0):
            parts[key].update(persistent_workers=False, prefetch_factor=None)  # torch refuses them then
        if parts.get(key) and torch.cuda.is_available():
            parts[key].setdefault('pin_memory', True)  # else the host waits while pictures go to the GPU
    if cfg.get('train_dataloader') and checkpoint is None:
        seed = cfg.randomness.seed
        parts.train_dataloader = seeded_dataloader(parts.train_dataloader, seed)
        parts.train_cfg = _own_loop(parts.train_cfg)
    if checkpoint is not None:
        for key in ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler', 'val_dataloader',
                    'val_cfg', 'val_evaluator'):
            parts.pop(key, None)
    if launcher != 'none':
        cfg.model_wrapper_cfg = wrapper_cfg(cfg)
    parts.custom_hooks = _with_essential(
        parts.get('custom_hooks'), dict(type='CheckpointGuardHook', source=source, resuming=bool(resume_from),
                                        strict=checkpoint is not None))
    parts.log_processor = {'type': 'LogProcessor', **(parts.get('log_processor') or {})}
    parts.visualizer = _visualizer(parts.get('visualizer'))
    if parts.get('custom_hooks') and checkpoint is not None:
        # It asks for a training loop even when testing.
        parts.custom_hooks = [h for h in parts.custom_hooks if h['type'] != 'EarlyStoppingHook']
    # Two Runners of one process and second would share a logger, a message hub and their folder.
    number = next(_runs)
    name = parts.get('experiment_name') or (Path(cfg.filename).stem if cfg.filename else 'run')
    parts.experiment_name = f'{name}_{number}' if number else name
    level = parts.pop('log_level', 'INFO')
    parts.update(load_from=source, resume=bool(resume_from), launcher=launcher,
                 default_scope=cfg.get('default_scope', 'mmdet'),
                 log_level='WARNING')  # mmengine would log a thousand lines of environment and config
    try:
        runner = _Runner(**parts, cfg=cfg)
    except KeyError as error:
        if unknown_type(error) is None:
            raise
        name, registry = unknown_type(error)
        raise UserError(f'unknown type {name!r} at {at_most(type_places(cfg, name), 3)}.'
                        f'{suggest(name, registered_names(registry))}') from error
    if checkpoint is not None:
        fast_layout(runner.model)
    _quieten(runner.logger, level)
    return runner


_RUNNER_KEYS = (
    'model', 'work_dir', 'train_dataloader', 'val_dataloader', 'test_dataloader', 'train_cfg', 'val_cfg',
    'test_cfg', 'auto_scale_lr', 'optim_wrapper', 'param_scheduler', 'val_evaluator', 'test_evaluator',
    'default_hooks', 'custom_hooks', 'data_preprocessor', 'env_cfg', 'log_processor', 'log_level', 'visualizer',
    'randomness', 'experiment_name',
)  # fmt: skip


_NOISE = (
    'Exp name:', 'Distributed training is not used', 'Checkpoints will be saved to',
    '"FileClient" will be deprecated', '"HardDiskBackend" is the alias', 'The prefix is not set in metric',
    '`save_param_scheduler` is True but',
)  # fmt: skip


def _quieten(logger: logging.Logger, level: str) -> None:
    """Log at `level` from now on, without what mmengine says about itself."""
    logger.addFilter(_tidy)
    for handler in list(logger.handlers):
        if dist.get_rank() == 0:
            handler.setLevel(level)
        if isinstance(handler, logging.FileHandler):
            # mmengine writes how each parameter was initialised into every FileHandler, past all filters.
            plain = logging.StreamHandler(open(handler.baseFilename, 'a', encoding='utf-8'))
            plain.setLevel(handler.level)
            plain.setFormatter(handler.formatter)
            plain.filters = handler.filters
            logger.removeHandler(handler)
            handler.close()
            logger.addHandler(plain)
    if dist.get_rank() == 0:
        logger.setLevel(level)


def _tidy(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return not text.startswith(_NOISE) and ' - torch.Size(' not in text


def wrapper_cfg(cfg: Config) -> dict:
    """The config's `model_wrapper_cfg`; DistributedDataParallel gets defaults and, without a GPU, none to run on."""
    asked = dict(cfg.get('model_wrapper_cfg') or {})
    if asked.setdefault('type', 'MMDistributedDataParallel') != 'MMDistributedDataParallel':
        return asked
    defaults = dict(broadcast_buffers=False, find_unused_parameters=cfg.get('find_unused_parameters', False),
                    gradient_as_bucket_view=True)  # without it each gradient is held, and copied, twice
    return {**defaults, **asked, **({} if torch.cuda.is_available() else dict(device_ids=None))}


def fast_layout(model: torch.nn.Module) -> torch.nn.Module:
    """For inference on the CPU: channels_last maps, up to a tenth faster in convolutions.

    Not for training: the batch statistics that PyTorch's CPU kernels take of such maps lose two digits.
    """
    on_cpu = next(model.parameters()).device.type == 'cpu'
    return model.to(memory_format=torch.channels_last) if on_cpu else model


def drop_pretrained(model: dict) -> None:
    """Weights that a checkpoint replaces at once need no download."""
    for value in model.values():
        for part in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(part, dict):
                drop_pretrained(part)
    init_cfg = model.get('init_cfg')
    if init_cfg:
        init_cfg = [init_cfg] if isinstance(init_cfg, dict) else init_cfg
        kept = [cfg for cfg in init_cfg if cfg.get('type') != 'Pretrained']
        if len(kept) < len(init_cfg):
            model['init_cfg'] = kept or None


def _own_loop(train_cfg: dict) -> dict:
    train_cfg = dict(train_cfg)
    if 'by_epoch' in train_cfg:
        train_cfg['type'] = 'EpochBasedTrainLoop' if train_cfg.pop('by_epoch') else 'IterBasedTrainLoop'
    return train_cfg


def _with_essential(hooks: list | None, guard: dict) -> list:
    from mmdet.registry import HOOKS

    hooks = [dict(hook) if isinstance(hook, dict) else hook for hook in hooks or []]
    listed = {hook['type'] for hook in hooks if isinstance(hook, dict)}
    if 'SyncBuffersHook' in listed:
        listed.add('SyncNormStatsHook')
    added = [dict(type=name) for name in _ESSENTIAL if name not in listed]
    if 'CBNHook' not in listed and HOOKS.get('CBNHook') is not None:
        added.append(dict(type='CBNHook'))  # without it burn-in could not be counted in epochs
    return [*hooks, *added, guard]


def _visualizer(cfg: dict | None) -> dict:
    cfg = dict(cfg or dict(type='DetVisualizer'))
    cfg.pop('name', None)  # a fixed name would return the Visualizer of an earlier Runner
    backends = [dict(b) for b in cfg.get('vis_backends') or [dict(type='LocalVisBackend')]]
    if find_spec('tensorboard') and all(b['type'] != 'TensorboardVisBackend' for b in backends):
        backends.append(dict(type='TensorboardVisBackend'))
    cfg['vis_backends'] = backends
    return cfg


def model_of(runner: Runner) -> BaseModel:
    """The model without its DistributedDataParallel wrapper."""
    return getattr(runner.model, 'module', runner.model)
