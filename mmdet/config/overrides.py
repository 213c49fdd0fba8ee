"""Methods of mmdetection that nothing calls here: who overrides one is told so, instead of being ignored."""

from collections.abc import Callable

from mmdet.config.errors import UserError


def refuse_overrides(**instead: str) -> Callable[[type], type]:
    """Class decorator: a subclass that has one of these methods of mmdetection is refused when it is defined.

    Nothing here calls them, so that the subclass would train and predict as if they were not there.

    Args:
        instead: ``name='what to override here'`` of each such method.

    >>> @refuse_overrides(bbox_loss='loss')
    ... class Head:
    ...     pass
    >>> class Mine(Head):
    ...     def bbox_loss(self): ...
    Traceback (most recent call last):
    mmdet.config.errors.UserError: Mine.bbox_loss would never be called: Head has no bbox_loss here, override loss \
instead (docs/extend/)
    """

    def decorate(owner: type) -> type:
        def __init_subclass__(cls: type, **options) -> None:
            super(owner, cls).__init_subclass__(**options)
            for name, other in instead.items():
                if hasattr(cls, name):  # its own, or a mixin's
                    raise UserError(
                        f'{cls.__name__}.{name} would never be called: {owner.__name__} has no {name} here, override '
                        f'{other} instead (docs/extend/)'
                    )

        owner.__init_subclass__ = classmethod(__init_subclass__)
        return owner

    return decorate
