"""The options of mmdetection 0.x (the method's release) to 2.x, in today's words."""

import sys
from collections.abc import Sequence

from mmdet.engine.launch import is_spawned

# option: today's words, how many values follow it, what is said
_OPTIONS: dict[str, tuple[list[str], int | None, str]] = {
    '--work_dir': (['--work-dir'], None, '--work-dir'),
    '--resume_from': (['--resume'], None, '--resume'),
    '--resume-from': (['--resume'], None, '--resume'),
    '--auto-resume': (['--resume'], None, '--resume'),
    '--autoscale-lr': (['--auto-scale-lr'], None, '--auto-scale-lr'),
    '--options': (['--cfg-options'], None, '--cfg-options'),
    '--validate': ([], 0, 'the default: the config has a val_dataloader or not'),
    '--no-validate': (['--cfg-options', 'val_dataloader=None', 'val_cfg=None', 'val_evaluator=None'], 0,
                      'val_dataloader=None, val_cfg=None, val_evaluator=None'),
    '--gpu-id': ([], 1, 'CUDA_VISIBLE_DEVICES'),
    '--proc_per_gpu': ([], 1, 'dropped: one process runs on a GPU'),
    '--tmpdir': ([], 1, 'dropped: results are gathered without files'),
    '--fuse-conv-bn': ([], 0, 'dropped: norms in eval mode are folded in any case'),
}  # fmt: skip


def modern_arguments(argv: Sequence[str] | None) -> list[str]:
    """A command line with old options replaced by today's; one line on stderr says which.

    >>> modern_arguments(['c.py', '--work-dir', 'x'])
    ['c.py', '--work-dir', 'x']
    """
    given, new, told = list(sys.argv[1:] if argv is None else argv), [], {}
    while given:
        word = given.pop(0)
        name, equals, value = word.partition('=')
        if name not in _OPTIONS:
            new.append(word)
            continue
        words, values, told[name] = _OPTIONS[name]
        new += words
        if values is None:  # today's option takes what follows
            new += [value] if equals else []
        elif not equals:
            del given[:values]
    if told and not is_spawned():
        print(f'options of older versions: {"; ".join(f"{old} is {now}" for old, now in told.items())}',
              file=sys.stderr, flush=True)  # fmt: skip
    return new
