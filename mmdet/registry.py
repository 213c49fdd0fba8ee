"""The registries that turn ``dict(type=NAME, ...)`` of a config into an object.

Each is a child of mmengine's registry of the same name: a name is looked up here first and in
mmengine afterwards, so a type of ours never collides with one that mmcv registers. Looking up a
name imports the subpackages that may register it; nothing is imported before that.

>>> from mmdet.registry import MODELS
>>> MODELS.build(dict(type='SmoothL1Loss', beta=1.0)).beta
1.0
"""

from collections.abc import Iterable, Sequence

from mmengine import registry as _root
from mmengine.registry import Registry

import mmdet.config.shipped  # noqa: F401  a script that reads its own config finds ``mmdet::`` bases

_from_data: set[str] = set()
_import_or_get = Registry.get


def look_up_only(names: Iterable[str]) -> None:
    """Never import these names, which come from data (JSON, YAML, --cfg-options): a registry holds them or not."""
    _from_data.update(names)


def came_from_data(name: str) -> bool:
    """Whether `name` is one of `look_up_only`."""
    return name in _from_data


def _get(self: Registry, key: str) -> type | None:
    """mmengine's lookup, which imports what no registry holds ('os.system'); not so for names that came from data.

    For all registries, because mmengine asks its root ones too (for a `collate_fn`). Can go when a lookup imports
    nothing.
    """
    if key not in _from_data:
        return _import_or_get(self, key)
    scope, name = self.split_scope_key(key)
    registry = self if scope in (None, self.scope) else self._get_root_registry()._search_child(scope)
    while registry is not None:
        registry.import_from_location()
        if name in registry.module_dict:
            return registry.module_dict[name]
        registry = registry.parent if scope is None else None
    return None


Registry.get = _get

_PARTS_OF_MODELS = ['mmdet.layers', 'mmdet.models']


def _child(name: str, locations: Sequence[str] = (__name__,)) -> Registry:
    # Without a location mmengine would look for `mmdet.utils.register_all_modules` and warn.
    parent = getattr(_root, name)
    return Registry(parent.name, parent=parent, scope='mmdet', locations=list(locations))


MODELS = _child('MODELS', _PARTS_OF_MODELS)
TASK_UTILS = _child('TASK_UTILS', _PARTS_OF_MODELS)
DATASETS = _child('DATASETS', ['mmdet.datasets'])
DATA_SAMPLERS = _child('DATA_SAMPLERS', ['mmdet.datasets'])
TRANSFORMS = _child('TRANSFORMS', ['mmdet.datasets'])
METRICS = _child('METRICS', ['mmdet.evaluation'])
EVALUATOR = _child('EVALUATOR', ['mmdet.evaluation'])
HOOKS = _child('HOOKS', ['mmdet.engine.hooks'])
VISUALIZERS = _child('VISUALIZERS', ['mmdet.visualization'])
LOG_PROCESSORS = _child('LOG_PROCESSORS', ['mmdet.engine.log'])
OPTIM_WRAPPERS = _child('OPTIM_WRAPPERS', ['mmdet.engine.amp'])
OPTIM_WRAPPER_CONSTRUCTORS = _child('OPTIM_WRAPPER_CONSTRUCTORS', ['mmdet.engine.optimizer'])
LOOPS = _child('LOOPS', ['mmdet.engine.loops'])

# Nothing of ours lives in these; they exist so that a lookup in scope 'mmdet' reaches mmengine's entries.
RUNNERS = _child('RUNNERS')
RUNNER_CONSTRUCTORS = _child('RUNNER_CONSTRUCTORS')
MODEL_WRAPPERS = _child('MODEL_WRAPPERS')
WEIGHT_INITIALIZERS = _child('WEIGHT_INITIALIZERS')
OPTIMIZERS = _child('OPTIMIZERS')
PARAM_SCHEDULERS = _child('PARAM_SCHEDULERS')
VISBACKENDS = _child('VISBACKENDS')
FUNCTIONS = _child('FUNCTIONS')
INFERENCERS = _child('INFERENCERS')
STRATEGIES = _child('STRATEGIES')


def registered_class(name: str) -> type | None:
    """What this package, or a user's file, has registered under `name` or 'mmdet.name'; None if nothing."""
    name = name.removeprefix('mmdet.')
    for registry in (MODELS, TASK_UTILS, DATASETS, TRANSFORMS, METRICS, EVALUATOR, DATA_SAMPLERS, HOOKS, VISUALIZERS,
                     LOOPS, OPTIM_WRAPPERS, LOG_PROCESSORS):  # fmt: skip
        registry.import_from_location()
        if name in registry.module_dict:
            return registry.module_dict[name]
    return None
