"""Values of a config that its place decides, and parts that need one another, checked before anything is built.

mmengine and torch would meet them late (a wrong threshold after an epoch of training) or not at all, and name no place.
What a class needs of its config it says itself: a registered class may have a class method
``check_config(cls, cfg, path, whole, training)``, called with its own part of the config, where that stands, the whole
config, and whether it is to train or only to test. It raises UserError.
"""

from collections.abc import Iterable, Iterator

from mmengine.config import Config

from mmdet.config.counting import check_counting
from mmdet.config.errors import UserError
from mmdet.config.values import check_options, class_of, number, walk, whole_number

_VALUES = {
    r'(train|val|test)_(dataloader|cfg)|default_hooks|auto_scale_lr': (
        lambda x: x is None or isinstance(x, dict), 'a dict is needed'),
    r'load_from': (lambda x: x is None or isinstance(x, str), 'the name of a file is needed'),
    r'(train|val|test)_dataloader\.batch_size': whole_number(1),
    r'(train|val|test)_dataloader\.num_workers': whole_number(0),
    r'(train|val|test)_dataloader\.shuffle': (
        lambda x: False, "that is up to the dataloader's sampler, sampler=dict(type='DefaultSampler', shuffle=...)"),
    r'train_cfg\.(max_epochs|max_iters|val_interval)|auto_scale_lr\.base_batch_size': whole_number(1),
    r'train_cfg\.val_begin': whole_number(0),
    r'optim_wrapper\.accumulative_counts': whole_number(1),
    r'optim_wrapper\.optimizer\.(lr|momentum|weight_decay)': number(0),
    r'optim_wrapper\.clip_grad\.max_norm': number(0),
    r'default_hooks\.logger\.interval': whole_number(1),
    r'model(\.\w+)*\.num_classes': whole_number(1),
}  # fmt: skip
_PARTS = {
    'train': ('train_dataloader', 'train_cfg', 'optim_wrapper'),
    'val': ('val_dataloader', 'val_cfg', 'val_evaluator'),
    'test': ('test_dataloader', 'test_cfg', 'test_evaluator'),
}


def check_values(cfg: Config, training: bool) -> None:
    """Check numbers whose range their place decides, that what training or testing needs is all there, and what each
    class says of its own part.

    Raises:
        UserError: names the place, the value, and what is needed.
    """
    whole = cfg.to_dict()
    check_options(whole, '', _VALUES)
    if not isinstance(whole.get('custom_hooks') or [], (list, tuple)):
        raise UserError(f"custom_hooks={whole['custom_hooks']!r}: a list of hooks is needed, [dict(type='EMAHook')]")
    if not whole.get('model'):
        raise UserError('the config has no model')
    phases = tuple(_PARTS) if training else ('test',)
    for phase in phases:
        _check_parts(whole, phase, needed=phase == 'train' or not training)
    check_counting(whole, training)
    wrapper = whole.get('optim_wrapper') or {}
    if training and not wrapper.get('optimizer') and 'constructor' not in wrapper:
        raise UserError("the config has no optim_wrapper.optimizer, such as dict(type='SGD', lr=0.02)")
    if training and 'constructor' not in wrapper:
        _check_multipliers(wrapper)
    used = [f'{phase}_{part}' for phase in phases for part in ('dataloader', 'evaluator')]
    for cls, part, path in _classes(whole, [*used, 'model', 'default_hooks', 'custom_hooks']):
        if hasattr(cls, 'check_config'):
            cls.check_config(part, path, whole, training)


def _check_multipliers(wrapper: dict) -> None:
    """Refuse factors of `paramwise_cfg` for what the optimizer's options leave out: mmengine multiplies those alone."""
    paths = [path for path, _ in walk(wrapper.get('paramwise_cfg') or {})]
    for option, factor in ('lr', 'lr_mult'), ('weight_decay', 'decay_mult'):
        path = next((path for path in paths if path.endswith(factor)), None)
        if path and wrapper['optimizer'].get(option) is None:
            raise UserError(f'optim_wrapper.paramwise_cfg.{path} is a factor of {option}, which '
                            f'optim_wrapper.optimizer does not give: add {option}=... there')


def check_files(cfg: Config, training: bool) -> None:
    """Check that the files are there which a run will read, as far as a class says by ``check_files(cls, cfg)``.

    Raises:
        MissingFile: names the file, and where it comes from.
    """
    phases = ('train', 'val') if training else ('test',)
    for cls, part, _ in _classes(cfg.to_dict(), [f'{phase}_dataloader' for phase in phases]):
        if hasattr(cls, 'check_files'):
            cls.check_files(part)


def _classes(cfg: dict, keys: Iterable[str]) -> Iterator[tuple[type | None, dict, str]]:
    """Each part of the config below `keys` with its class and its path."""
    for path, part in walk({key: cfg[key] for key in keys if key in cfg}):
        if isinstance(part, dict):
            yield class_of(part), part, path


def _check_parts(cfg: dict, phase: str, needed: bool) -> None:
    names = _PARTS[phase]
    missing = [name for name in names if cfg.get(name) is None]
    if missing and (needed or len(missing) < len(names)):
        word = dict(train='training', val='validation', test='testing')[phase]
        way_out = '' if needed else f'; or set all three to None, to do without {word}'
        raise UserError(f'the config has no {" and no ".join(missing)}: {word} needs {", ".join(names)}{way_out}')
