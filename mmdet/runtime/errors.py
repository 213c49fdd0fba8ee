"""A user's mistake ends in one clear line; this is where that line is made and printed."""

import difflib
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable

EXIT_USER_ERROR = 2

# What a person's input can cause: shown as one line. Anything else is our bug and keeps its traceback.
_USER_ERRORS = (ValueError, FileNotFoundError, NotADirectoryError, PermissionError, IsADirectoryError)


class UserError(ValueError):
    """Something the user asked for cannot be done; the message names the value, the place and the remedy."""


class Interrupted(Exception):
    """The run was stopped by a signal after saving its state; `signum` becomes the exit status."""

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.signum = signum


def suggest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """'' or ' Did you mean ...?' with the known names nearest to `name`.

    >>> suggest('MaskRCN', ['MaskRCNN', 'FasterRCNN', 'FPN'])
    ' Did you mean MaskRCNN?'
    """
    lower = {k.lower(): k for k in sorted(known)}
    near = difflib.get_close_matches(name.lower(), lower, n=3, cutoff=cutoff)
    if near and difflib.SequenceMatcher(None, name.lower(), near[0]).ratio() > 0.85:
        near = near[:1]
    return f' Did you mean {" or ".join(lower[n] for n in near)}?' if near else ''


def at_most(names: Iterable[str], limit: int = 10) -> str:
    """Join names for a message: at most `limit` of them, then how many more there are."""
    names = list(names)
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return ', '.join(names[:limit]) + more


def one_line(error: BaseException) -> str:
    """The error's message without line breaks (and without the quotes that KeyError adds)."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    # a data loader's worker sends its whole traceback as the message
    text = re.sub(r'^Caught \w+ in DataLoader worker.*\n\w+: ', '', text, flags=re.DOTALL)
    return ' '.join(text.split()) or type(error).__name__


def run_main(main: Callable[[], None]) -> None:
    """Run a tool's main(); a user's mistake becomes ``error: ...`` on stderr and exit status 2.

    With several processes rank 0 speaks at once and the others a few seconds later, so that a mistake
    all of them meet is printed once (the launcher ends the others meanwhile), and one that only rank 3
    meets is printed too. MMDET_DEBUG=1 adds the traceback.
    """
    try:
        main()
    except Interrupted as stop:
        if _rank() == 0:
            print(stop, file=sys.stderr, flush=True)
        _leave(128 + stop.signum)
    except KeyboardInterrupt:
        if _rank() == 0:
            print('interrupted', file=sys.stderr, flush=True)
        _leave(128 + signal.SIGINT)
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        explained = explain(error)
        if _lost_peer(error):
            time.sleep(8)  # the process that failed explains itself, and its launcher ends us
        elif _rank() > 0:
            time.sleep(3)
        if explained is None or os.environ.get('MMDET_DEBUG') == '1':
            traceback.print_exc()
        print(f'error: {explained or one_line(error)}', file=sys.stderr, flush=True)
        _leave(EXIT_USER_ERROR if explained else 1)


def _rank() -> int:
    return int(os.environ.get('RANK', 0))


def _lost_peer(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and bool(
        re.search(r'Connection (closed|reset|refused)|[Gg]loo|NCCL|Broken pipe', str(error)))


def explain(error: BaseException) -> str | None:
    """One line for a user's mistake, None for what looks like a bug."""
    if isinstance(error, _USER_ERRORS):
        return one_line(error)
    if unknown_type(error):
        name, registry = unknown_type(error)
        return f'unknown type {name!r} ({registry}).{suggest(name, registered_names(registry))}'
    wrong_call = r'(\w+)\.__init__\(\) (got an unexpected keyword argument|missing \d+ required .*:) (.*)'
    option = re.match(wrong_call, str(error))
    if isinstance(error, TypeError) and option and option.group(1) in registered_names():
        name, what, which = option.groups()
        return f'{name}: the config {"gives an unknown option" if "unexpected" in what else "lacks"} {which}'
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return f'{error.strerror}: {error.filename}'
    if _lost_peer(error):
        return f'lost the connection to another process, which has ended: {one_line(error)[:200]}'
    if isinstance(error, MemoryError):
        return f'out of memory: {one_line(error)}'
    if type(error).__name__ == 'OutOfMemoryError':
        return (f'out of GPU memory: {one_line(error).split(". ")[0]}. Use a smaller '
                'train_dataloader.batch_size or smaller pictures')
    return None


def unknown_type(error: BaseException) -> tuple[str, str] | None:
    """(type, registry) of mmengine's KeyError about a type that no registry holds."""
    missing = re.match(r'(\S+) is not in the \S+?::(\S+) registry', one_line(error))
    return missing.groups() if isinstance(error, KeyError) and missing else None


def registered_names(registry_name: str | None = None) -> set[str]:
    """All names that a config may use in the registry called `registry_name`, or in any (ours and mmengine's)."""
    from mmengine import registry as root

    from mmdet import registry as ours

    names = set()
    for module in (ours, root):
        for candidate in vars(module).values():
            if isinstance(candidate, root.Registry) and registry_name in (None, candidate.name):
                candidate.import_from_location()
                names |= set(candidate.module_dict)
    return names


def _leave(status: int) -> None:
    """Exit without waiting for other ranks or worker threads (a barrier would never be reached)."""
    sys.stdout.flush()
    sys.stderr.flush()
    if int(os.environ.get('WORLD_SIZE', 1)) > 1:
        os._exit(status)
    sys.exit(status)
