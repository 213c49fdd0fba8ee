"""From a checked config to mmengine's Runner."""

import copy
import itertools
import signal
from importlib.util import find_spec
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.dist import get_rank
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import nn

from mmdet.checkpoints import Checkpoint, NoDownload, keys_that_fit, load_pretrained
from mmdet.config.counting import counts_iterations, loop_type
from mmdet.config.errors import UserError, at_most, registered_names, say, unknown_type, unknown_type_text
from mmdet.config.load import type_places
from mmdet.engine.amp import buildable
from mmdet.engine.freezing import freeze
from mmdet.engine.launch import stop_signals
from mmdet.engine.log import ignore_known_warnings, quieten
from mmdet.engine.message_hub import DeferredMessageHub, defer_grad_norm
from mmdet.engine.schedule import scale_by_batch
from mmdet.engine.seeding import seeded_dataloader
from mmdet.engine.workers import start_worker
from mmdet.layers import pack
from mmdet.models.initialize import leave_out_files, parts_of_file

# What mmengine's Runner takes of a config; the rest of its arguments are set here.
_RUNNER_KEYS = (
    'model', 'work_dir', 'train_dataloader', 'val_dataloader', 'test_dataloader', 'train_cfg', 'val_cfg',
    'test_cfg', 'auto_scale_lr', 'optim_wrapper', 'param_scheduler', 'val_evaluator', 'test_evaluator',
    'default_hooks', 'custom_hooks', 'data_preprocessor', 'env_cfg', 'log_processor', 'log_level', 'visualizer',
    'randomness', 'experiment_name',
)  # fmt: skip
_DATALOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
_TRAINING = ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler', 'val_dataloader', 'val_cfg',
             'val_evaluator')
# What the backends of `visualizer.vis_backends` need; each is an extra.
_PACKAGES = {'WandbVisBackend': 'wandb', 'TensorboardVisBackend': 'tensorboard', 'MLflowVisBackend': 'mlflow',
             'ClearMLVisBackend': 'clearml', 'NeptuneVisBackend': 'neptune', 'DVCLiveVisBackend': 'dvclive',
             'AimVisBackend': 'aim'}
# Hooks every run needs; a config may list one itself to set its options. CBNHook counts burn-in in epochs.
_ESSENTIAL = ('StepSeedHook', 'NonFiniteLossHook', 'SyncNormStatsHook', 'RunInfoHook', 'StopSafelyHook', 'CBNHook',
              'ProgressHook', 'DataWaitHook', 'LiveLineHook')

_runs = itertools.count()


def build_runner(cfg: Config, launcher: str = 'none', resume_from: Checkpoint | None = None,
                 checkpoint: Checkpoint | None = None) -> Runner:
    """A Runner that saves and loads safely, whatever hooks the config names.

    Args:
        resume_from: the opened file to continue training from.
        checkpoint: the opened file to test; every weight must fit. Either is emptied when it is loaded.

    Raises:
        UserError: a type of the config that no registry holds.
    """
    testing = checkpoint is not None
    opened = checkpoint if testing else resume_from
    ignore_known_warnings()
    if launcher != 'none':
        cfg.model_wrapper_cfg = wrapper_cfg(cfg)
    parts = ConfigDict({key: value for key, value in cfg.to_dict().items() if key in _RUNNER_KEYS})
    if opened is not None:
        drop_pretrained(parts.model)
    if testing:
        _drop_training(parts)
    elif parts.get('train_dataloader'):
        _seed_and_resume_batches(parts)
        parts.optim_wrapper = buildable(parts.optim_wrapper)
    _complete_dataloaders(parts)
    if cfg.get('frozen_parts') and not testing:
        parts.custom_hooks = [*(parts.get('custom_hooks') or []), dict(type='FreezeHook', names=cfg.frozen_parts)]
    _add_hooks(parts, dict(type='CheckpointGuardHook', resuming=resume_from is not None, strict=testing))
    _add_outputs(parts)
    _name_run(parts, cfg)
    level = parts.pop('log_level', 'INFO')
    parts.update(resume=resume_from is not None, launcher=launcher,
                 default_scope=cfg.get('default_scope', 'mmdet'),
                 log_level='WARNING')  # mmengine would log a thousand lines of environment and config
    runner = _construct(dict(parts, load_from=cfg.get('load_from') if opened is None else opened), cfg)
    quieten(runner.logger, level)
    return runner


def _drop_training(parts: ConfigDict) -> None:
    for key in _TRAINING:
        parts.pop(key, None)
    # It asks for a training loop even when testing.
    hooks = parts.get('custom_hooks') or []
    parts.custom_hooks = [hook for hook in hooks if _type_name(hook) != 'EarlyStoppingHook']


def _seed_and_resume_batches(parts: ConfigDict) -> None:
    """The data loader and the loop that can begin in the middle of an epoch (see `seeding` and `loops`)."""
    parts.train_dataloader = seeded_dataloader(parts.train_dataloader, parts.randomness.seed)
    parts.train_cfg.type = loop_type(parts.train_cfg)
    parts.train_cfg.pop('by_epoch', None)
    if parts.train_cfg.get('dynamic_intervals'):  # of the command line or JSON; mmengine wants tuples
        parts.train_cfg.dynamic_intervals = [tuple(pair) for pair in parts.train_cfg.dynamic_intervals]
    if counts_iterations(parts.train_cfg):
        _count_iterations(parts)


def _count_iterations(parts: ConfigDict) -> None:
    """Without epochs the log counts iterations, and a config that speaks of no checkpoints has one per evaluation."""
    log = dict(parts.get('log_processor') or {})
    if log.get('by_epoch'):
        say('the log counts iterations, as train_cfg does: log_processor.by_epoch=True is for a loop of epochs')
    parts.log_processor = dict(log, by_epoch=False)
    hooks = dict(parts.get('default_hooks') or {})
    interval = parts.train_cfg.get('val_interval', 1000)  # mmengine's default
    hooks.setdefault('checkpoint', dict(type='CheckpointHook', by_epoch=False, interval=interval))
    parts.default_hooks = hooks


def _complete_dataloaders(parts: ConfigDict) -> None:
    for loader in filter(None, map(parts.get, _DATALOADERS)):
        if not loader.get('num_workers', 0):
            loader.update(persistent_workers=False, prefetch_factor=None)  # torch refuses them then
        else:
            seed = (parts.get('randomness') or {}).get('seed') or 0
            loader['worker_init_fn'] = dict(type=start_worker, num_workers=loader['num_workers'], rank=get_rank(),
                                            seed=seed, then=loader.get('worker_init_fn'))
        if torch.cuda.is_available():
            loader.setdefault('pin_memory', True)  # else the host waits while images go to the GPU


def _type_name(part: dict | object) -> str:
    """'CBNHook' of dict(type='CBNHook'), 'mmdet.CBNHook', the class itself or an object of it."""
    kind = part.get('type', '') if isinstance(part, dict) else type(part)
    return kind.removeprefix('mmdet.') if isinstance(kind, str) else kind.__name__


def _add_hooks(parts: ConfigDict, guard: dict) -> None:
    hooks = list(parts.get('custom_hooks') or [])
    listed = {_type_name(hook) for hook in hooks}
    if 'SyncBuffersHook' in listed:
        listed.add('SyncNormStatsHook')
    parts.custom_hooks = [*hooks, *(dict(type=name) for name in _ESSENTIAL if name not in listed), guard]


def _add_outputs(parts: ConfigDict) -> None:
    """The log, and the backends that store its numbers."""
    parts.log_processor = {'type': 'LogProcessor', **(parts.get('log_processor') or {})}
    visualizer = dict(parts.get('visualizer') or dict(type='DetVisualizer'))
    visualizer.pop('name', None)  # a fixed name would return the Visualizer of an earlier Runner
    backends = visualizer.get('vis_backends') or []
    backends = [backends] if isinstance(backends, dict) else list(backends)
    there = {_type_name(backend).rpartition('.')[2] for backend in backends}
    for name in there:
        if name in _PACKAGES and not find_spec(_PACKAGES[name]):
            raise UserError(f'visualizer.vis_backends: {name} needs a package that is not installed: '
                            f'pip install {_PACKAGES[name]}')
    if 'LocalVisBackend' not in there:  # scalars.json, whatever else is chosen
        backends.insert(0, dict(type='LocalVisBackend'))
    if find_spec('tensorboard') and 'TensorboardVisBackend' not in there:
        backends.append(dict(type='TensorboardVisBackend'))
    parts.visualizer = dict(visualizer, vis_backends=backends)


def _name_run(parts: ConfigDict, cfg: Config) -> None:
    """A name of its own: two Runners of one process and second would share a logger, a message hub and a folder."""
    number = next(_runs)
    name = parts.get('experiment_name') or (Path(cfg.filename).stem if cfg.filename else 'run')
    parts.experiment_name = f'{name}_{number}' if number else name


def _construct(parts: dict, cfg: Config) -> Runner:
    try:
        return _Runner(**parts, cfg=_FormattedConfig.of(cfg))
    except KeyError as error:
        name, registry = unknown_type(error) or ('', '')
        places = type_places(cfg, name)
        if not places:  # nobody wrote it into the config
            raise
        raise UserError(unknown_type_text(name, f' at {at_most(places, 3)}', registered_names(registry))) from error


class _FormattedConfig(Config):
    """A config that is formatted once.

    mmengine 0.10.7 lets yapf format it (seconds) at each save, and makes of a signal meanwhile a SyntaxError of
    hundreds of lines; can go when it keeps the text.
    """

    pretty_text = property(lambda self: self._text)

    @classmethod
    def of(cls, cfg: Config) -> '_FormattedConfig':
        try:
            text = cfg.pretty_text
        except SyntaxError as error:
            if isinstance(error.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            raise
        formatted = cls.__new__(cls)
        vars(formatted).update(vars(copy.deepcopy(cfg)), _text=text)
        return formatted


class _Runner(Runner):
    """mmengine's, which does not wait for a GPU in every iteration to log it (see `message_hub`)."""

    def train(self) -> nn.Module:
        handlers = {signum: signal.getsignal(signum) for signum in stop_signals()}
        try:
            return super().train()
        finally:  # StopSafelyHook's must not outlive a training that fails
            for signum, handler in handlers.items():
                signal.signal(signum, handler)
            self.call_hook('leave_terminal')

    def _log_env(self, env_cfg: dict) -> None:
        """Nothing: mmengine imports torchvision and asks the C compiler, 1.5 s, for lines that this log leaves out."""

    def build_message_hub(self, message_hub: dict | None = None) -> DeferredMessageHub:
        return DeferredMessageHub.get_instance(**(message_hub or dict(name=self._experiment_name)))

    def wrap_model(self, model_wrapper_cfg: dict | None, model: torch.nn.Module) -> torch.nn.Module:
        if self.cfg.get('frozen_parts') and self._train_loop is not None:
            say('frozen: {:,} of {:,} parameters'.format(*freeze(model, self.cfg.frozen_parts)))
        # before DistributedDataParallel, which lays gradients out as the weights are
        wrapper = self.optim_wrapper  # still a config; None in tests
        if not torch.cuda.is_available() and (wrapper is None or wrapper.get('type') == 'CpuAmpOptimWrapper'):
            model = fast_layout(model)
            if wrapper is None:
                pack(model)
        return super().wrap_model(model_wrapper_cfg, model)

    def _init_model_weights(self) -> None:
        """mmengine's, without files (which may not be there) for parts that `load_from` fills."""
        if isinstance(self._load_from, str) and not self._has_loaded:
            self._load_from = load_pretrained(self._load_from)  # opened once: the Runner is about to load it
            leave_out_files(model_of(self), keys_that_fit(model_of(self), self._load_from))
        try:
            super()._init_model_weights()
        except NoDownload as error:
            parts = parts_of_file(model_of(self), error.uri)
            options = ' '.join('.'.join(filter(None, ('model', part, 'init_cfg=None'))) for part in parts)
            raise UserError(f'{error}; or train without them: --cfg-options {options}') from error

    def scale_lr(self, optim_wrapper: OptimWrapper, auto_scale_lr: dict | None = None) -> None:
        if (auto_scale_lr or {}).get('enable'):
            scale_by_batch(self, auto_scale_lr['base_batch_size'])

    def build_optim_wrapper(self, optim_wrapper) -> OptimWrapper:
        built = super().build_optim_wrapper(optim_wrapper)
        if built is not optim_wrapper:  # mmengine asks again when resuming
            for wrapper in built.optim_wrappers.values() if isinstance(built, OptimWrapperDict) else [built]:
                if wrapper.clip_grad_kwargs:
                    defer_grad_norm(wrapper)
        return built


def wrapper_cfg(cfg: Config) -> dict:
    """The config's `model_wrapper_cfg`; DistributedDataParallel gets defaults and, without a GPU, none to run on."""
    asked = dict(cfg.get('model_wrapper_cfg') or {})
    if asked.setdefault('type', 'MMDistributedDataParallel') != 'MMDistributedDataParallel':
        return asked
    defaults = dict(broadcast_buffers=False, find_unused_parameters=cfg.get('find_unused_parameters', False),
                    gradient_as_bucket_view=True)  # without it each gradient is held, and copied, twice
    return {**defaults, **asked, **({} if torch.cuda.is_available() else dict(device_ids=None))}


def fast_layout(model: nn.Module) -> nn.Module:
    """For inference and for bfloat16 on the CPU: channels_last maps.

    Not for float32 training, whose numbers would move in the last digits.
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


def model_of(runner: Runner) -> BaseModel:
    """The model without its DistributedDataParallel wrapper."""
    return getattr(runner.model, 'module', runner.model)
