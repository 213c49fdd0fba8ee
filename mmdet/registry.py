"""The registries that turn ``dict(type=NAME, ...)`` of a config into an object.

Each is a child of mmengine's registry of the same name: a name is looked up here first and in
mmengine afterwards, so a type of ours never collides with one that mmcv registers. Looking up a
name imports the rooms in ``locations``; nothing is imported before that.

>>> from mmdet.registry import MODELS
>>> MODELS.build(dict(type='SmoothL1Loss', beta=1.0)).beta
1.0
"""

from mmengine import registry as _root
from mmengine.registry import Registry

_MODEL_ROOMS = ['mmdet.layers', 'mmdet.models']


def _child(name: str, locations: list[str]) -> Registry:
    parent = getattr(_root, name)
    # Without a location mmengine would look for `mmdet.utils.register_all_modules` and warn.
    return Registry(parent.name, parent=parent, scope='mmdet', locations=locations or [__name__])


MODELS = _child('MODELS', _MODEL_ROOMS)
TASK_UTILS = _child('TASK_UTILS', _MODEL_ROOMS)
DATASETS = _child('DATASETS', ['mmdet.datasets'])
DATA_SAMPLERS = _child('DATA_SAMPLERS', ['mmdet.datasets'])
TRANSFORMS = _child('TRANSFORMS', ['mmdet.datasets'])
METRICS = _child('METRICS', ['mmdet.evaluation'])
HOOKS = _child('HOOKS', ['mmdet.engine'])
VISUALIZERS = _child('VISUALIZERS', ['mmdet.engine'])
LOG_PROCESSORS = _child('LOG_PROCESSORS', ['mmdet.engine'])
OPTIM_WRAPPERS = _child('OPTIM_WRAPPERS', ['mmdet.engine'])
LOOPS = _child('LOOPS', ['mmdet.runtime.seeding'])

# Nothing of ours lives in these; they exist so that a lookup in scope 'mmdet' reaches mmengine's
# entries. mmengine warns where a registry names no room, so they name this module.
_NONE = ['mmdet.registry']
RUNNERS = _child('RUNNERS', _NONE)
RUNNER_CONSTRUCTORS = _child('RUNNER_CONSTRUCTORS', _NONE)
MODEL_WRAPPERS = _child('MODEL_WRAPPERS', _NONE)
WEIGHT_INITIALIZERS = _child('WEIGHT_INITIALIZERS', _NONE)
OPTIMIZERS = _child('OPTIMIZERS', _NONE)
OPTIM_WRAPPER_CONSTRUCTORS = _child('OPTIM_WRAPPER_CONSTRUCTORS', _NONE)
PARAM_SCHEDULERS = _child('PARAM_SCHEDULERS', _NONE)
EVALUATOR = _child('EVALUATOR', _NONE)
VISBACKENDS = _child('VISBACKENDS', _NONE)
FUNCTIONS = _child('FUNCTIONS', _NONE)
INFERENCERS = _child('INFERENCERS', _NONE)
STRATEGIES = _child('STRATEGIES', _NONE)
