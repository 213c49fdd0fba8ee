"""The only place for work-arounds of mmengine's and torch's versions; each names its reason.

- `errors`: a user's mistake ends in one clear line;
- `config`: loading a config with errors a person can act on;
- `values`: what its values must be, before anything is built;
- `checkpoint`: safe and atomic checkpoints, pretrained weights;
- `stand_ins`, `pickled_arrays`: files of other programs, read without running the code in them;
- `schedule`: resuming with another learning-rate schedule;
- `command_line`, `launch`: what the tools' options have in common; processes on GPUs and without;
- `seeding`: randomness that survives resuming, any number of workers and processes;
- `scalars`: numbers of a GPU logged without a wait in every iteration;
- `run`: the Runner with all of these.
"""

from importlib import import_module

_HOME = dict(
    fit_weights='checkpoint', load_pretrained='checkpoint', read_checkpoint='checkpoint',
    say='checkpoint', write_atomically='checkpoint', check_types='config', load_config='config', check_values='values',
    Interrupted='errors', UserError='errors', run_main='errors', suggest='errors',
)  # fmt: skip

__all__ = sorted(_HOME)


def __getattr__(name: str):
    # Lazily: a process that only starts others must not wait seconds for mmengine.
    if name not in _HOME:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'{__name__}.{_HOME[name]}'), name)
