"""Methods of mmdetection that nothing calls here: who overrides or calls one is told so, instead of being ignored."""

import inspect
from collections.abc import Callable, Iterable

from mmdet.config.errors import UserError

# Arguments that only mmdetection's methods have: whoever writes one counts on getting what is called so there.
FOREIGN = frozenset((
    'assign_result', 'batch_data_samples', 'batch_gt_instances', 'batch_gt_instances_ignore', 'batch_img_metas',
    'bbox_targets', 'bbox_weights', 'gt_instances', 'label_weights', 'pred_instances', 'rcnn_train_cfg',
    'rpn_results_list', 'sampling_results',
))  # fmt: skip


class _Elsewhere:
    """Stands on a class where mmdetection's has a method, for whoever calls it."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __call__(self, *args, **kwargs) -> None:
        raise UserError(self.text)


def refuse_overrides(guide: str, foreign: Iterable[str] = FOREIGN, **instead: str) -> Callable[[type], type]:
    """Class decorator: a subclass that has one of these methods of mmdetection is refused when it is defined.

    Nothing here calls them, so that the subclass would train and predict as if they were not there; unless it brings
    what takes their place, too, which may call them. Refused is also a method of the same name with mmdetection's
    arguments, which are others here.

    Args:
        guide: the file of docs/ that shows how it is done here.
        foreign: arguments of mmdetection's methods that the class's own do not have.
        instead: ``name='what to override here'`` of each such method. Who calls one is told the same.

    >>> @refuse_overrides('extend/head.md', bbox_loss='loss')
    ... class Head:
    ...     def loss(self, logits, targets): ...
    >>> class Mine(Head):
    ...     def bbox_loss(self): ...
    Traceback (most recent call last):
    mmdet.config.errors.UserError: Mine.bbox_loss would never be called: Head has no bbox_loss here, override loss \
instead (docs/extend/head.md)
    >>> class Mine(Head):
    ...     def loss(self, x, batch_data_samples): ...
    Traceback (most recent call last):
    mmdet.config.errors.UserError: Mine.loss(x, batch_data_samples) would be given something else: Head.loss takes \
(logits, targets) here (docs/extend/head.md)
    >>> Head().bbox_loss(1)
    Traceback (most recent call last):
    mmdet.config.errors.UserError: Head has no bbox_loss here, use loss (docs/extend/head.md)
    """
    guide = f'(docs/{guide})'

    def decorate(owner: type) -> type:
        own = {
            name: method for name, method in vars(owner).items() if inspect.isfunction(method) and name != '__init__'
        }
        for name, other in instead.items():
            setattr(owner, name, _Elsewhere(f'{owner.__name__} has no {name} here, use {other} {guide}'))

        def __init_subclass__(cls: type, **options) -> None:
            for name, other in instead.items():
                definer = next(base for base in cls.__mro__ if name in vars(base))  # itself, or a mixin
                calls_it = other in own and other in vars(definer)
                if not isinstance(vars(definer)[name], _Elsewhere) and not calls_it:
                    raise UserError(
                        f'{cls.__name__}.{name} would never be called: {owner.__name__} has no {name} here, override '
                        f'{other} instead {guide}'
                    )
            for name, method in own.items():
                theirs = inspect.getattr_static(cls, name)
                if inspect.isfunction(theirs) and {*foreign} & {*_arguments(theirs)}:
                    raise UserError(
                        f'{cls.__name__}.{name}({", ".join(_arguments(theirs))}) would be given something else: '
                        f'{owner.__name__}.{name} takes ({", ".join(_arguments(method))}) here {guide}'
                    )
            super(owner, cls).__init_subclass__(**options)  # afterwards: what the nearest class says is the truest

        owner.__init_subclass__ = classmethod(__init_subclass__)
        return owner

    return decorate


def _arguments(method: Callable) -> list[str]:
    return [name for name in inspect.signature(method).parameters if name != 'self']
