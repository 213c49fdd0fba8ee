"""Names of mmdetection that stand for something else here: whoever imports one is told what."""

from collections.abc import Callable

from mmdet.config.errors import UserError


class AbsentName(UserError, ImportError):
    """An import of a name that this project does not have."""


def absent(module: str, **sentences: str) -> Callable[[str], object]:
    """The ``__getattr__`` of a module that has not these names of mmdetection's module.

    Args:
        module: its ``__name__``.
        sentences: ``name='what to do instead'``.

    >>> absent('mmdet.structures.bbox', HorizontalBoxes='boxes are tensors (n, 4)')('HorizontalBoxes')
    Traceback (most recent call last):
    mmdet.config.absent.AbsentName: mmdet.structures.bbox has no HorizontalBoxes here: boxes are tensors (n, 4)
    """

    def lookup(name: str) -> object:
        if name in sentences:
            raise AbsentName(f'{module} has no {name} here: {sentences[name]}')
        raise AttributeError(f'module {module!r} has no attribute {name!r}')

    return lookup
