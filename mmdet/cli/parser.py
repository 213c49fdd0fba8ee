"""What the command lines have in common; a mistake in one is a `UserError` like any other.

Neither torch nor mmengine is imported here: a mistake in a command line is said at once.
"""

import argparse
import ast
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mmdet.config.errors import UserError, suggest
from mmdet.engine.launch import LAUNCHERS, is_spawned, spawn

# Options of mmdetection's tools that these have not.
_ABSENT = {
    '--show': 'Images are drawn into files: --show-dir FOLDER.',
    '--wait-time': 'Images are drawn into files: --show-dir FOLDER.',
    **{name: f'It is an option of the config: --cfg-options {option}.' for names, option in {
        ('--lr', '--learning-rate'): 'optim_wrapper.optimizer.lr=0.01',
        ('--load-from', '--pretrained', '--weights'): 'load_from=FILE',
        ('--epochs', '--max-epochs'): 'train_cfg.max_epochs=24',
        ('--batch-size', '--samples-per-gpu'): 'train_dataloader.batch_size=2',
        ('--workers', '--num-workers', '--workers-per-gpu'): 'train_dataloader.num_workers=4',
        ('--data-root',): 'data_root=FOLDER',
    }.items() for name in names},
}


EXIT_STATUSES = """Exit status: 0 done; 2 a mistake in what was asked for, explained in one line; 1 anything else;
130 after Ctrl-C, 143 after SIGTERM, 129 when the terminal was closed. MMDET_DEBUG=1 adds a traceback."""


class Parser(argparse.ArgumentParser):
    """argparse without abbreviated options, saying what is wrong in one line instead of a page of usage.

    Args:
        description: what the command does.
        examples: what one types after the command's name, for --help.
        statuses: what the exit status says.
    """

    def __init__(self, description: str, examples: Sequence[str] = (), statuses: str = EXIT_STATUSES):
        called = Path(sys.argv[0]).name
        prog = ' '.join(['mmdet', *sys.argv[1:2]]) if called in ('mmdet', '__main__.py') else called
        lines = ['Examples:', *(f'  {prog} {example}' for example in examples), ''] if examples else []
        super().__init__(prog=prog, description=description, epilog='\n'.join([*lines, statuses]), allow_abbrev=False,
                         formatter_class=argparse.RawDescriptionHelpFormatter)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:
        """Also where options stand between CONFIG and what may be left out, CHECKPOINT or images."""
        if any(action.nargs in ('?', '*') for action in self._get_positional_actions()):
            return self.parse_intermixed_args(args, namespace)
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        _, _, unknown = message.partition('unrecognized arguments: ')
        name = unknown.split()[0].split('=')[0] if unknown else ''
        hint = f' {_ABSENT[name]}' if name in _ABSENT else suggest(name, self._option_string_actions) if name else ''
        raise UserError(f'{message}.{hint} {self.prog} --help lists what can be given')

    def add_config_arguments(self, example: str) -> None:
        """CONFIG and --cfg-options."""
        self.add_argument('config', help='a config file, or the name of one that comes with mmdet')
        self.add_argument('--cfg-options', **self.config_options(example))

    @staticmethod
    def config_options(example: str) -> dict[str, Any]:
        """How --cfg-options is read."""
        return dict(nargs='+', action=_KeyValues, default={}, metavar='KEY=VALUE',
                    help=f'change the config, e.g. {example}')

    def add_inference_arguments(self) -> None:
        """--amp, --tta and --compile."""
        self.add_argument('--amp', action='store_true',
                          help='mixed precision: float16 on GPU, bfloat16 on a CPU that has instructions for it')
        self.add_argument('--tta', action='store_true',
                          help="test-time augmentation by the config's tta_model and tta_pipeline (default: each image "
                          'also mirrored)')
        self.add_argument('--compile', action='store_true', help='torch.compile: a slow first image, then faster ones')

    def add_process_arguments(self) -> None:
        """How many processes, and who starts them; `start_processes` reads these."""
        self.add_argument('--gpus', type=int, default=1, metavar='N',
                          help='processes to start here: one per GPU, or on CPU where there is no GPU')
        self.add_argument('--launcher', choices=LAUNCHERS, default='none',
                          help='who started the processes, when not --gpus')
        self.add_argument('--local_rank', '--local-rank', help=argparse.SUPPRESS)  # of torch.distributed.launch


class _KeyValues(argparse.Action):
    def __call__(self, parser, namespace, values: Sequence[str], option_string=None) -> None:
        options = dict(getattr(namespace, self.dest))
        for pair in values:
            key, equals, text = pair.partition('=')
            if not equals:
                parser.error(f'--cfg-options {pair}: KEY=VALUE is needed')
            try:
                options[key] = parse_value(text)
            except UserError as error:
                parser.error(f'--cfg-options {pair}: {error}')
        setattr(namespace, self.dest, options)


def parse_value(text: str) -> Any:
    """A value as it is typed: a Python literal, or as mmengine reads it, whose words need no quotes.

    Raises:
        UserError: brackets that do not match, or braces that are not a Python literal.

    >>> parse_value('1333,800'), parse_value('[a,(b,2)]'), parse_value("{'k': [1e-3, None]}"), parse_value('true')
    ([1333, 800], ['a', ('b', 2)], {'k': [0.001, None]}, True)
    """
    text = text.strip()
    if text.startswith(('{', '[', '(')):
        try:
            return ast.literal_eval(text)
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            if '{' in text:
                raise UserError(f'{text} is not a Python value (strings in it need quotes)') from None
    text = text.strip('\'"')
    inner = text[1:-1] if text.startswith(('[', '(')) and text.endswith((']', ')')) else text
    if inner is text and ',' not in text:
        return _scalar(text)
    parts, depth = [''], 0
    for letter in inner:
        depth += (letter in '[(') - (letter in '])')
        if depth < 0 or depth > 50:
            break
        if letter == ',' and depth == 0:
            parts.append('')
        else:
            parts[-1] += letter
    if depth:
        raise UserError(f'the brackets of {text} do not match')
    values = [parse_value(part) for part in parts if part.strip()]
    return tuple(values) if text.startswith('(') else values


def _scalar(text: str) -> int | float | bool | str | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return {'true': True, 'false': False, 'none': None if text == 'None' else text}.get(text.lower(), text)


def text_table(rows: Sequence[Sequence], right: Iterable[int] | None = None, total: bool = False) -> str:
    """Rows of cells, the first the heading, as text.

    Args:
        right: columns of numbers (default: all but the first).
        total: rule off the last row.
    """
    from terminaltables import AsciiTable

    table = AsciiTable(rows)
    table.inner_footing_row_border = total
    table.justify_columns = dict.fromkeys(range(1, len(rows[0])) if right is None else right, 'right')
    return table.table


# Read by libraries that are not imported yet.
_ON_CPUS = {
    # Threads that spin while they wait make a step several times as long where something else needs the cores.
    'OMP_WAIT_POLICY': 'PASSIVE',
    # PyTorch asks for large pages: filling fresh memory in small ones is a fifth of a step's time.
    'THP_MEM_ALLOC_ENABLE': '1',
}


def start_processes(args: argparse.Namespace, check: Callable[[], object]) -> str:
    """Run this command in ``args.gpus`` processes, where nobody else does; returns the launcher to join them by.

    The process that starts others does not return: it waits for them and leaves with their exit status. Before it
    starts them it calls `check`, which raises UserError for what would make each of them fail.
    """
    for name, value in _ON_CPUS.items():
        os.environ.setdefault(name, value)
    if args.local_rank is not None:
        os.environ.setdefault('LOCAL_RANK', args.local_rank)
    if args.gpus < 1:
        raise UserError(f'--gpus {args.gpus}: at least 1 process is needed')
    if args.launcher == 'none':
        spawn(args.gpus, check)
    return 'pytorch' if is_spawned() else args.launcher
