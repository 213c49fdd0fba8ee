"""What the command lines of the tools have in common; a mistake in one is a `UserError` like any other."""

import argparse
import ast
import os
from typing import NoReturn

from mmdet.config.errors import UserError, one_line, suggest
from mmdet.engine.launch import LAUNCHERS, check_gpus, is_spawned, spawn

# Options of mmdetection's tools that these have not.
_ABSENT = {
    '--tta': 'There is no test-time augmentation here: tta_model and tta_pipeline of a config have no effect.',
    '--show': 'Pictures are drawn into files: --show-dir FOLDER.',
    '--wait-time': 'Pictures are drawn into files: --show-dir FOLDER.',
}


class Parser(argparse.ArgumentParser):
    """argparse without abbreviated options, saying what is wrong in one line instead of a page of usage."""

    def __init__(self, description: str):
        super().__init__(description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        _, _, unknown = message.partition('unrecognized arguments: ')
        name = unknown.split()[0].split('=')[0] if unknown else ''
        hint = f' {_ABSENT[name]}' if name in _ABSENT else suggest(name, self._option_string_actions) if name else ''
        raise UserError(f'{message}.{hint} {self.prog} --help lists what can be given')

    def add_config_arguments(self, example: str) -> None:
        """CONFIG and --cfg-options."""
        from mmengine.config import DictAction

        class KeyValues(DictAction):
            @staticmethod
            def _parse_iterable(text):
                if text.startswith(('{', '[', '(')):
                    try:
                        return ast.literal_eval(text)
                    except (SyntaxError, ValueError, MemoryError, RecursionError):
                        if '{' in text:
                            raise ValueError(f'{text} is not a Python value (strings in it need quotes)') from None
                return DictAction._parse_iterable(text)  # [a,b] without quotes, numbers, words

            def __call__(self, parser, namespace, values, option_string=None):
                for pair in values:
                    try:
                        super().__call__(parser, namespace, [pair], option_string)
                    except (AssertionError, SyntaxError, ValueError, RecursionError) as error:
                        reason = one_line(error) if '=' in pair else 'KEY=VALUE is needed'
                        parser.error(f'--cfg-options {pair}: {reason}')

        self.add_argument('config', help='a config file')
        self.add_argument('--cfg-options', nargs='+', action=KeyValues, default={}, metavar='KEY=VALUE',
                          help=f'change the config, e.g. {example}')

    def add_process_arguments(self) -> None:
        """How many processes, and who starts them; `start_processes` reads these."""
        self.add_argument('--gpus', type=int, default=1, metavar='N',
                          help='processes to start here: one per GPU, or on CPU where there is no GPU')
        self.add_argument('--launcher', choices=LAUNCHERS, default='none',
                          help='who started the processes, when not --gpus')
        self.add_argument('--local_rank', '--local-rank', help=argparse.SUPPRESS)  # of torch.distributed.launch


def start_processes(args: argparse.Namespace) -> str:
    """Run this command in ``args.gpus`` processes, where nobody else does; returns the launcher to join them by.

    The process that starts others does not return: it waits for them and leaves with their exit status.
    """
    if args.local_rank is not None:
        os.environ.setdefault('LOCAL_RANK', args.local_rank)
    check_gpus(args.gpus)
    if args.launcher == 'none':
        spawn(args.gpus)
    return 'pytorch' if is_spawned() else args.launcher
