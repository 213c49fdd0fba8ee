"""Variables of config files: what a change of one reaches.

A config file defines `norm_cfg`, `data_root` or `train_pipeline` and uses it in the parts that the Runner reads. These
hold copies by then. Whoever changes the variable, by ``--cfg-options`` or in a file that builds on that one, means them
too: they are found by their value. mmengine changes the variable alone, without a word; this file can go when it does
more.
"""

import ast
import copy
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from mmdet.config.errors import UserError, at_most, say
from mmdet.config.values import walk

# Read by the Runner besides its parameters, or by our tools.
_TOOL_KEYS = {
    'activation_checkpointing', 'compile', 'custom_imports', 'default_scope', 'efficient_conv_bn_eval',
    'find_unused_parameters', 'frozen_parts', 'model_wrapper_cfg', 'sync_bn', 'tta_model', 'tta_pipeline',
}  # fmt: skip
RUN_KEYS = (set(inspect.signature(Runner.__init__).parameters) - {'self', 'cfg'}) | _TOOL_KEYS


def is_carried(value: Any) -> bool:
    """Whether copies of a value can be told by it: a number, None or an empty list stands in too many places."""
    return isinstance(value, (dict, list, tuple, str)) and bool(value)


def carried(cfg: dict, name: str, before: Any, after: Any) -> tuple[dict, int]:
    """A config in which the variable `name` has reached the copies of its old value; also how many these are.

    Texts that begin with the old `data_root` begin with the new one.
    """
    count = 0

    def replaced(value: Any) -> Any:
        nonlocal count
        if isinstance(value, type(before)) and value == before:
            count += 1
            return copy.deepcopy(after)
        if isinstance(value, dict):
            return type(value)((k, replaced(v)) for k, v in value.items())
        if isinstance(value, (list, tuple)):
            return type(value)(replaced(v) for v in value)
        if name == 'data_root' and isinstance(value, str) and value.startswith(before):
            count += 1
            return os.path.join(after, value[len(before):].lstrip('/'))
        return value

    return {key: value if key == name else replaced(value) for key, value in cfg.items()}, count


def places_of(cfg: dict, name: str, value: Any) -> list[str]:
    """Where the Runner reads a value under the variable's own name: ``train_cfg.max_epochs`` for `max_epochs`."""
    return [path for path, v in walk(cfg) if path.split('.')[0] in RUN_KEYS and path.split('.')[-1] == name
            and type(v) is type(value) and v == value]  # fmt: skip


# ---------------------------------------------------------------------- a file that builds on others


@contextmanager
def files_inherit_variables() -> Iterator[None]:
    """While this lasts, a variable that a config file sets reaches what the files of its `_base_` made of it.

    Where the file itself uses the variable, as mmdetection's configs do, it says where its value belongs, and the files
    below keep theirs. What a changed variable cannot reach is named in a line.
    """
    read, merge = Config._file2dict, Config._merge_a_into_b
    files: list[tuple[str, set[str]]] = []  # being read, outermost first; variables used in the files below each
    merging = False

    def read_file(filename: str, *args, **kwargs) -> tuple:
        files.append((str(filename), set()))
        try:
            return read(filename, *args, **kwargs)
        finally:
            path, below = files.pop()
            if files:
                files[-1][1].update(below, _used(path))

    def merge_file(child: dict, base: dict, allow_list_keys: bool = False) -> dict:
        nonlocal merging
        if merging or not files:
            return merge(child, base, allow_list_keys)
        merging = True  # its own calls for the dicts inside
        try:
            return _inherit(child, base, *files[-1], merge)
        finally:
            merging = False

    Config._file2dict, Config._merge_a_into_b = staticmethod(read_file), staticmethod(merge_file)
    try:
        yield
    finally:
        Config._file2dict, Config._merge_a_into_b = staticmethod(read), staticmethod(merge)


def _inherit(child: dict, base: dict, path: str, used_below: set[str], merge: Callable) -> dict:
    _check_kinds(child, base, path)
    used = _used(path) if child.keys() & base.keys() - RUN_KEYS else set()
    unreached = []
    for name in child.keys() & base.keys() - RUN_KEYS - used:
        before = base[name]
        after = merge({name: copy.deepcopy(child[name])}, {name: before})[name]
        if after == before:
            continue
        count = 0
        if is_carried(before):
            base, count = carried(base, name, before, after)
        if not count:
            unreached.append((name, before, after, places_of(base, name, before)))
    merged = merge(child, base)
    for name, before, after, places in unreached:
        kept = [place for place in places_of(merged, name, before) if place in places]
        if kept or name in used_below and not places:
            remedy = f'set {at_most(kept, 3)}' if kept else 'set what was made of it'
            say(f'{path}: {name}={after!r} reaches nothing, its value of before has been used: {remedy}')
    return merged


def _check_kinds(child: dict, base: dict, path: str, place: str = '') -> None:
    """Raise UserError for a dict in the place of a list of dicts: mmengine advises ``_delete_=True``, which would leave
    one of a cascade's three heads."""
    for key, value in child.items():
        here, below = f'{place}{key}', base.get(key)
        if not isinstance(value, dict) or value.get('_delete_'):
            continue
        if isinstance(below, dict):
            _check_kinds(value, below, path, f'{here}.')
        elif isinstance(below, (list, tuple)):
            raise UserError(f'{path}: {here} is a dict here and a list of {len(below)} in the file below it (_base_). '
                            f'To change each of them write a list, {key}=[dict(x, {_options(value)}) for x in '
                            f'_base_.{here}]')


def _options(change: dict) -> str:
    """A change as the arguments of ``dict()``; what is nested is left to the reader."""
    return ', '.join(f'{key}={"..." if isinstance(value, (dict, list, tuple)) else repr(value)}'
                     for key, value in change.items())


def _used(path: str) -> set[str]:
    """The variables of which a config file makes others, not those that it only goes on building."""
    if not path.endswith('.py'):
        return set()
    used = set()
    for statement in ast.parse(Path(path).read_text(encoding='utf-8')).body:
        loaded = {node.id for node in ast.walk(statement)
                  if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}  # fmt: skip
        used |= loaded - {_built(statement)}
    return used


def _built(statement: ast.stmt) -> str | None:
    """The variable that a statement assigns to (also ``a['k'] = ...``), or calls a method of."""
    node = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, 'target', None)
    node = statement.value if isinstance(statement, ast.Expr) else node
    while node is not None and not isinstance(node, ast.Name):
        node = getattr(node, 'func', None) or getattr(node, 'value', None)
        node = node if isinstance(node, ast.AST) else None
    return node.id if node is not None else None
