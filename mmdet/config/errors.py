"""A user's mistake ends in one clear line; this is where that line is made and printed.

Exit statuses: 0 done; 2 a mistake in what was asked for (one line); 1 anything else: a bug with its traceback, or a
state of the machine that a later try may not meet (one line: disk full, a lost process); 128 + N ended by signal N.
"""

import atexit
import difflib
import errno
import inspect
import logging
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType

SPAWNED = 'MMDET_SPAWNED'  # set in processes that `launch.spawn` started: the folder for their reports

# What the machine refuses whatever the program does; the system's words and the file's name say it all.
_REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EROFS, errno.EACCES,
            errno.EPERM, errno.EIO)  # fmt: skip

# What is asked of mmdetection's HorizontalBoxes.
_BOX_CLASS = (r"'(numpy\.ndarray|Tensor)' object has no attribute '(tensor|rescale_|resize_|flip_|translate_|project_|"
              r"rotate_|clip_|areas|widths|heights|centers|is_inside|find_inside_points|overlaps)'")


class UserError(ValueError):
    """Something the user asked for cannot be done; the message names the value, the place and the remedy.

    It alone becomes one line. Whoever checks what a person wrote (a config, a command line, a data file) raises it.
    """


class MissingFile(UserError, FileNotFoundError):
    """A file that the user named is not there."""


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
    text = re.sub(r'^Caught \w+ in DataLoader worker.*\n[\w.]+: ', '', text, flags=re.DOTALL)
    return ' '.join(text.split()) or type(error).__name__


def say(text: str) -> None:
    """One line on rank 0, in the run's log where there is one."""
    if _rank() == 0:
        from mmengine.logging import print_log

        print_log(text, logger='current', level=logging.WARNING)


def run_main(main: Callable[[], None]) -> None:
    """Run a tool's main(); a user's mistake becomes ``error: ...`` on stderr and exit status 2.

    Of several processes one is heard, whether all meet a mistake or rank 3 alone: `launch.spawn` chooses among their
    reports. Under another launcher rank 0 speaks at once and the others a few seconds later, when that launcher will
    have ended them. MMDET_DEBUG=1 adds the traceback of a mistake.
    """
    try:
        main()
    except Interrupted as stop:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is leaving
        if _rank() == 0:
            print(stop, file=sys.stderr, flush=True)
        _leave(128 + stop.signum)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if _rank() == 0:
            print('interrupted', file=sys.stderr, flush=True)
        _leave(128 + signal.SIGINT)
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises again for each worker that has ended
        mistake = mistake_in(error)
        line = mistake or _state_of_the_machine(error)
        text = f'error: {line or _hint(error) or _with_note(error)}'
        if line is None or os.environ.get('MMDET_DEBUG') == '1':
            text = traceback.format_exc() + text
        _report(text, _lost_peer(error))
        _leave(2 if mistake else 1)
    if _has_peers():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done; an exit function would print a traceback
        # Now and then a thread of gloo outlives its group, and aborts when it meets an interpreter that is going down.
        atexit._run_exitfuncs()
        _leave(0)


def _with_note(error: BaseException) -> str:
    note = getattr(error, '__notes__', ())
    return one_line(error) + (f' ({note[0]})' if note else '')


def _report(text: str, lost: bool) -> None:
    if SPAWNED in os.environ:
        Path(os.environ[SPAWNED], report_name(os.getpid(), lost)).write_text(text)
        return
    if lost:
        time.sleep(8)  # the process that failed explains itself
    elif _rank() > 0:
        time.sleep(3)
    print(text, file=sys.stderr, flush=True)


def report_name(pid: int, lost: bool) -> str:
    """File in which a process leaves its last words; `lost`: another process's end was the reason."""
    return f'{pid}.lost' if lost else str(pid)


def _has_peers() -> bool:
    return int(os.environ.get('WORLD_SIZE', 1)) > 1


def _rank() -> int:
    return int(os.environ.get('RANK', 0))


def _lost_peer(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and bool(
        re.search(r'Connection (closed|reset|refused)|[Gg]loo|NCCL|Broken pipe', str(error)))


def mistake_in(error: BaseException) -> str | None:
    """One line for a mistake in what was asked for; None for anything else."""
    if isinstance(error, UserError):
        return one_line(error)
    if unknown_type(error):
        name, registry = unknown_type(error)
        return unknown_type_text(name, f' ({registry})', registered_names(registry))
    if isinstance(error, TypeError) and _built(error):
        return _wrong_option(error, *_built(error)) or _no_type(error)
    return _no_type(error)


def _state_of_the_machine(error: BaseException) -> str | None:
    """One line for what another try, or another machine, may not meet; None for anything else."""
    if isinstance(error, OSError) and error.errno in _REFUSED:
        return ': '.join(map(str, filter(None, (error.strerror, error.filename))))
    # torch.multiprocessing's
    if isinstance(error, OSError) and any(f.f_code.co_name == 'rebuild_storage_fd' for f in _frames(error)):
        return (f"the connection to a data loader's worker is lost ({error.strerror}): it has ended, or its files in "
                f'{tempfile.gettempdir()} were removed. --resume continues from the last checkpoint')
    if isinstance(error, ImportError) and error.name is None and _built(error):  # said by hand: what is to be installed
        return f'{_built(error)[0].__name__}: {one_line(error)}'
    if _lost_peer(error):
        return f'lost the connection to another process, which has ended: {one_line(error)[:200]}'
    if isinstance(error, RuntimeError) and 'DataLoader worker (pid' in str(error):
        if 'killed by signal' in str(error.__cause__):  # torch says less of one that ended while its batch was awaited
            error = error.__cause__
        killed = 'signal: Killed' in str(error)  # as the kernel does; it sends no other signal for that
        why = '. Often the machine ran out of memory: lower num_workers or batch_size of the dataloader' * killed
        return f'{one_line(error).split(". ")[0].rstrip(".")}{why}; --resume continues from the last checkpoint'
    return None


def _hint(error: BaseException) -> str | None:
    """What a traceback is likely to mean, where that is known."""
    if isinstance(error, MemoryError):
        return f'out of memory: {one_line(error)}'
    if isinstance(error, AttributeError) and re.fullmatch(_BOX_CLASS, one_line(error)):
        return (f"{one_line(error)}: boxes are plain here, arrays (n, 4) in transforms and tensors in models, none of "
                "mmdetection's classes")
    if type(error).__name__ == 'OutOfMemoryError':
        return (f'out of GPU memory: {one_line(error).split(". ")[0]}. Use a smaller '
                'train_dataloader.batch_size or smaller images')
    if isinstance(error, RuntimeError) and re.search(r'expected input.* channels|mat1 and mat2 shapes', str(error)):
        return f'{_model_part(error)} gets features of another size than its options say: {one_line(error)}'
    if _built(error):
        built, options = _built(error)
        given = [f'{k}={v!r}' for k, v in options.items() if isinstance(v, (bool, int, float, str, list, tuple))]
        return (f'{built.__name__} cannot be built from these options: {type(error).__name__}: {one_line(error)}. '
                f'Given were {at_most((text for text in given if len(text) < 60), 8)}')
    return None


def _frames(error: BaseException) -> Iterator[FrameType]:
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def _model_part(error: BaseException) -> str:
    """'model > FPN': the outermost and the innermost part of a model in which the error was raised."""
    parts = [type(frame.f_locals.get('self')) for frame in _frames(error)]
    names = [part.__name__ for part in parts if part.__module__.startswith('mmdet.models.')]
    return ' > '.join(dict.fromkeys((names[0], names[-1]))) if names else 'the model'


# mmengine's functions, and what they call the class; the second builds what `convert_to_iter_based` asks for
_BUILDERS = {'build_from_cfg': 'obj_cls', 'build_scheduler_from_cfg': 'scheduler_cls'}


def _built(error: BaseException) -> tuple[Callable, dict] | None:
    """The innermost class that was being built from the config when the error was raised, and its options."""
    frames = [(frame.f_code.co_name, frame.f_locals) for frame in _frames(error)]
    builds = [(names.get(_BUILDERS[of]), names.get('args')) for of, names in frames if of in _BUILDERS]
    return next((build for build in reversed(builds) if build[0] is not None), None)  # else none is found yet


def _no_type(error: BaseException) -> str | None:
    """A line about a part of the config that is not a dict with a type, which mmengine met when building it."""
    *_, innermost = _frames(error) if error.__traceback__ else [None]
    if getattr(innermost, 'f_code', None) is None or innermost.f_code.co_name != 'build_from_cfg':
        return None
    cfg = innermost.f_locals.get('cfg')
    inside = f' inside {_built(error)[0].__name__}' if _built(error) else ''
    if isinstance(error, KeyError) and 'type' not in (cfg or {}):
        return f'a part of the config{inside} has no type; its keys are {at_most(map(str, cfg or ()))}'
    if isinstance(error, TypeError) and not isinstance(cfg, dict):
        return f'a part of the config{inside} is {cfg!r}; dict(type=...) is needed'
    return None


def _wrong_option(error: TypeError, built: Callable, options: dict) -> str | None:
    """A line about an option that the class, or one that it is based on, does not know or lacks."""
    call = re.match(r"(\S+)\(\) (got an unexpected|missing \d+ required) .*?('.*)", one_line(error))
    if call is None:
        return None
    name, what, which = call.groups()
    bases = [base.__name__ for base in getattr(built, '__mro__', [built])]
    if name.removesuffix('.__init__').rpartition('.')[2] not in bases:
        return None  # a call inside the constructor is wrong, not the config
    if what.startswith('missing'):
        return f'{built.__name__}: the config lacks {which}'
    if which.strip("'") not in options:
        return None
    hint = suggest(which.strip("'"), inspect.signature(built).parameters)
    return f'{built.__name__}: the config gives an unknown option {which}' + (f'.{hint}' if hint else '')


def unknown_type(error: BaseException) -> tuple[str, str] | None:
    """(type, registry) of mmengine's KeyError about a type that no registry holds."""
    missing = re.match(r'(\S+) is not in the \S+?::(.+?) registry', one_line(error))
    return missing.groups() if isinstance(error, KeyError) and missing else None


def unknown_type_text(name: str, place: str, known: Iterable[str]) -> str:
    """A line about a type that no registry holds."""
    from mmdet.registry import came_from_data

    if '.' in name and came_from_data(name):
        return (f'unknown type {name!r}{place}: JSON and YAML configs and --cfg-options name registered types alone; a '
                'Python config may name any class')
    return f'unknown type {name!r}{place}.{suggest(name, known)}'


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
    if _has_peers():
        os._exit(status)
    sys.exit(status)
