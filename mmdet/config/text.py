"""The text of a config, such as a checkpoint holds, read as data: nothing in it is run.

A subset of Python is understood: assignments of literals, dict(...) and earlier names, with +, -, *, / and // between
them. That is what mmdetection writes. Types are looked up in the registries alone, as in JSON (see `data_files`).
"""

import ast
import operator
from typing import Any

from mmengine.config import Config

from mmdet.config.data_files import check_data
from mmdet.config.errors import UserError

_NO_CODE = '; the text of a config runs no code, give the config file instead'
_MAX_TEXT = 1_000_000  # characters
_MAX_SIZE = 200_000  # values and characters of one variable, as in YAML
_TOO_LARGE = f'a value of more than {_MAX_SIZE:,} items or characters is too large for a config'
_OPERATIONS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}  # fmt: skip


def read_text(text: str, origin: str) -> dict[str, Any]:
    """The config that a text of assignments gives.

    mmcv wrote the file's name before its text, and the texts of its bases before it; later ones change earlier ones.

    Raises:
        UserError: it is no such text, or asks for anything beyond data; names `origin` and the line.
    """
    if len(text) > _MAX_TEXT:
        raise UserError(f'{origin}: {len(text):,} characters are too many for a config')
    whole: dict[str, Any] = {}
    for part in _files(text):
        try:
            names: dict[str, Any] = {}
            sizes: dict[int, tuple[Any, int]] = {}
            for node in ast.parse(part).body:
                _assign(node, names)
                _check_size(list(names.values()), sizes)
            names.pop('_base_', None)
            whole = Config._merge_a_into_b(names, whole)
        except SyntaxError as error:
            raise UserError(f'{origin} is not the text of a config: line {error.lineno}: {error.msg}') from error
        except (RecursionError, MemoryError) as error:
            raise UserError(f'{origin} is too deep for a config') from error
        except UserError as error:
            raise UserError(f'{origin}: {error}') from error
        except (TypeError, ValueError, KeyError, ArithmeticError) as error:
            raise UserError(f'{origin} is not the text of a config: {type(error).__name__}: {error}') from error
    check_data(whole, origin)
    return whole


def _files(text: str) -> list[str]:
    """The parts of a text that is several files, each behind a line with its name."""
    parts = ['']
    for line in text.splitlines(keepends=True):
        name = line.strip()
        if name.endswith('.py') and not set(name) & set('\'"=#(), '):
            parts.append('')
        else:
            parts[-1] += line
    return parts


def _assign(node: ast.stmt, names: dict[str, Any]) -> None:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):  # a docstring
        return
    if not isinstance(node, ast.Assign) or not all(isinstance(target, ast.Name) for target in node.targets):
        raise UserError(f'line {node.lineno}: {ast.unparse(node)[:60]!r} is not an assignment{_NO_CODE}')
    value = _value(node.value, names)
    for target in node.targets:
        names[target.id] = value


def _value(node: ast.expr, names: dict[str, Any]) -> Any:
    def values(nodes: list[ast.expr]) -> list:
        return [_value(item, names) for item in nodes]

    if isinstance(node, ast.Constant) and isinstance(node.value, (str, int, float, bool, type(None))):
        return node.value
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        return {ast.List: list, ast.Tuple: tuple, ast.Set: set}[type(node)](values(node.elts))
    if isinstance(node, ast.Dict) and None not in node.keys:
        return dict(zip(values(node.keys), values(node.values)))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict' and not node.args:
        made: dict[str, Any] = {}
        for keyword in node.keywords:  # ** without a name
            made.update({keyword.arg: _value(keyword.value, names)} if keyword.arg else _value(keyword.value, names))
        return made
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand, names)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return _computed(node.op, _value(node.left, names), _value(node.right, names))
    raise UserError(f'line {node.lineno}: {ast.unparse(node)[:60]!r} is more than data{_NO_CODE}')


def _computed(operation: ast.operator, left: Any, right: Any) -> Any:
    lengths = [len(value) for value in (left, right) if hasattr(value, '__len__')]
    counts = [abs(value) for value in (left, right) if isinstance(value, int)]
    if isinstance(operation, ast.Mult) and lengths and counts and lengths[0] * counts[0] > _MAX_SIZE:
        raise UserError(_TOO_LARGE)
    return _OPERATIONS[type(operation)](left, right)


def _check_size(value: Any, known: dict[int, tuple[Any, int]]) -> int:
    """Values and characters in `value`, whatever it refers to several times counted as often; refuses too many."""
    if id(value) not in known:
        if isinstance(value, dict):
            size = 1 + sum(_check_size(key, known) + _check_size(item, known) for key, item in value.items())
        elif isinstance(value, (list, tuple, set)):
            size = 1 + sum(_check_size(item, known) for item in value)
        else:
            size = 1 + (len(value) if isinstance(value, str) else abs(value).bit_length() if type(value) is int else 0)
        if size > _MAX_SIZE:
            raise UserError(_TOO_LARGE)
        known[id(value)] = value, size  # the value too: while it lives no other has its id
    return known[id(value)][1]
