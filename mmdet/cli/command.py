"""The `mmdet` command: ``mmdet VERB ...`` calls `main` of the module mmdet/cli/VERB.py, which alone is imported.

A module here that defines ``main(argv)`` is a verb; the first line of its docstring stands in ``mmdet --help``.
"""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from mmdet.cli.parser import EXIT_STATUSES
from mmdet.config.errors import UserError, run_main, suggest
from mmdet.version import __version__

# Then the others.
_IN_THIS_ORDER = ('convert', 'init', 'check', 'browse', 'train', 'curves', 'test', 'analyze', 'compare', 'predict',
                  'export', 'benchmark', 'config')

_HELP = """usage: mmdet VERB [options]

{verbs}

From images to a detector:
  mmdet convert photos/                        annotations of any tool to COCO's format, in data/photos
  mmdet init data/photos                       a config that fits the data and this machine, photos.py
  mmdet train photos.py --gpus 2
  mmdet test photos.py work_dirs/photos/epoch_12.pth --eval bbox --out found.pkl
  mmdet analyze photos.py found.pkl            why AP is what it is, in analysis/report.html

CONFIG is a file, or the name of one that comes with mmdet: cbn/mask_rcnn_r50_fpn_cbn_buffer3_burnin8_1x
mmdet VERB --help tells more.

{statuses}"""


def verbs() -> dict[str, str]:
    """Each verb and what it does, without importing any."""
    found = {}
    for path in sorted(Path(__file__).parent.glob('*.py')):
        text = path.read_text(encoding='utf-8')
        if '\ndef main(' in text:
            found[path.stem.replace('_', '-')] = text.split('"""')[1].strip().splitlines()[0]
    first = {name: found.pop(name) for name in _IN_THIS_ORDER if name in found}
    return first | found


def call(argv: Sequence[str] | None = None) -> None:
    """Call the verb that stands first in `argv` (default: the command line).

    Raises:
        UserError: no such verb; names the nearest.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    known = verbs()
    if not words or words[0] in ('-h', '--help', 'help'):
        table = '\n'.join(f'  {name:13} {text}' for name, text in known.items())
        print(_HELP.format(verbs=table, statuses=EXIT_STATUSES))
    elif words[0] in ('-V', '--version'):
        print(f'mmdet {__version__}')
    elif words[0] in known:
        importlib.import_module(f'mmdet.cli.{words[0].replace("-", "_")}').main(words[1:])
    else:
        raise UserError(f'mmdet has no verb {words[0]!r}.{suggest(words[0], known)} mmdet --help lists them')


def run() -> None:
    """The console script."""
    run_main(call)
