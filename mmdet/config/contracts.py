"""What a part written by a user must take and give, looked at when it is called for the first time.

Whoever calls such a part says by `on_first_call` what it counts on. The look costs one call: nothing of it is left
afterwards.
"""

import inspect
from collections.abc import Callable
from typing import Any

from mmdet.config.errors import UserError, at_most
from mmdet.config.overrides import FOREIGN

Check = Callable[..., str | None]


def on_first_call(owner: Any, method: str, returns: Check | None = None, takes: Check | None = None) -> None:
    """Check the first call of ``owner.method``; an error inside it stays what it is, and gets a line of what was given.

    Args:
        returns: (result, *arguments) -> None, or what is expected instead.
        takes: (*arguments) -> None, or what is expected and what came instead.

    Raises:
        UserError: there is no such method, now; or, at the first call, that something else came, or was given.

    >>> class Twice:
    ...     def run(self, number):
    ...         return f'{2 * number}'
    >>> part = Twice()
    >>> on_first_call(part, 'run', lambda result, number: None if isinstance(result, int) else 'a number')
    >>> part.run(3)
    Traceback (most recent call last):
    mmdet.config.errors.UserError: Twice.run gave a str; a number is expected
    >>> part.run(3)
    '6'
    """
    must_have(owner, method)
    # what was said first comes from nearer to the part, or is more
    vars(owner).setdefault(method, _FirstCall(owner, method, returns, takes))


def must_have(owner: Any, *names: str, like: str = '') -> None:
    """Raise UserError where a part lacks a method or an attribute that is needed, with the class that shows it."""
    missing = [name for name in names if not hasattr(owner, name)]
    if missing:
        raise UserError(f'{type(owner).__name__} has no {" and no ".join(missing)}'
                        + (f', as {like} has' if like else '') + ' (docs/compatibility.md)')


def takes_ours(owner: Any, **calls: str) -> None:
    """Raise UserError where a method of a part takes mmdetection's arguments; ``name='how it is called here'``."""
    for name, call in calls.items():
        method = getattr(type(owner), name, None)
        takes = [*inspect.signature(method).parameters][1:] if callable(method) else []
        if FOREIGN & {*takes}:
            raise UserError(f'{type(owner).__name__}.{name}({", ".join(takes)}) would be given something else: it is '
                            f'called as {call} here (docs/extend/head.md)')


def call_unchecked(owner: Any) -> None:
    """Leave out the checks of `on_first_call`, for whoever makes something else of the methods."""
    for name in [name for name, value in vars(owner).items() if isinstance(value, _FirstCall)]:
        del vars(owner)[name]


class _FirstCall:
    """Stands on an object in the place of a method until that is called. It is copied and pickled with the object."""

    def __init__(self, owner: Any, method: str, returns: Check | None, takes: Check | None):
        self.owner, self.method, self.returns, self.takes = owner, method, returns, takes

    def __call__(self, *args, **kwargs) -> Any:
        if vars(self.owner).get(self.method) is self:
            del vars(self.owner)[self.method]
        name, method = f'{type(self.owner).__name__}.{self.method}', getattr(type(self.owner), self.method)
        given = [*map(described, args), *(f'{key}={described(value)}' for key, value in kwargs.items())]
        try:
            inspect.signature(method).bind(self.owner, *args, **kwargs)
        except TypeError:
            takes = [str(part).split(':')[0] for part in inspect.signature(method).parameters.values()][1:]
            raise UserError(f'{name} takes ({", ".join(takes)}), and is called with {", ".join(given)} '
                            '(docs/compatibility.md)') from None
        expected = self.takes and self.takes(*args, **kwargs)
        if expected:
            raise UserError(f'{name} needs {expected}')
        try:
            result = method(self.owner, *args, **kwargs)
        except UserError:
            raise
        except Exception as error:
            if not getattr(error, '__notes__', None):  # else of a part of this one; Python 3.10 shows none by itself
                error.__notes__ = [f'in the first call of {name}, which is given {", ".join(given)}']
            raise
        expected = self.returns and self.returns(result, *args, **kwargs)
        if expected:
            raise UserError(f'{name} gave {described(result)}; {expected} is expected')
        return result


def described(value: Any, depth: int = 2) -> str:
    """What a value is, in a few words: its type, and shape or parts.

    >>> described((1.5, [None, 'a'], dict(id=0, found=dict(scores=[], labels=[]))))
    'a tuple (a float, a list (None, a str), a dict (id, found (scores, labels)))'
    """
    kind = type(value).__name__
    if value is None:
        return 'None'
    if hasattr(value, 'shape') and hasattr(value, 'dtype'):
        return f'{str(value.dtype).removeprefix("torch.")} {kind} {tuple(value.shape)}'
    if isinstance(value, (tuple, list)) and depth:
        parts = [described(part, depth - 1) for part in value]
    elif _is_dict(value):
        parts = [f'{name}{_names(value.get(name)) if depth else ""}' for name in value.keys()]
    else:
        return f'a {kind}'
    return f'a {kind} ({at_most(parts, 8)})'


def _is_dict(value: Any) -> bool:
    """A dict or a data sample."""
    return hasattr(value, 'keys') and hasattr(value, 'get')


def _names(value: Any) -> str:
    return f' ({at_most(map(str, value.keys()), 8)})' if _is_dict(value) else ''
