"""Reading a config and checking it; `UserError`, which becomes one line.

The names below are imported when they are first used: a process that only starts others must not wait for mmengine.
"""

from importlib import import_module

_HOME = dict(
    load_config='load', check_types='load', check_values='check',
    Interrupted='errors', UserError='errors', run_main='errors', say='errors', suggest='errors',
)  # fmt: skip

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'{__name__}.{_HOME[name]}'), name)
