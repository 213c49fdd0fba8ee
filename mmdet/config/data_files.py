"""Configs that are data: a JSON or YAML file, or --cfg-options, runs no code, whatever it holds.

A Python config is code, and may do what code may. mmengine 0.10.7 reads YAML with a loader that calls what a tag names
(`!!python/object/apply:os.system`), and imports a ``type`` that no registry holds ('os.system'). This file can go when
it does neither.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import yaml
from mmengine.fileio import JsonHandler, YamlHandler, register_handler

from mmdet.config.errors import UserError, at_most
from mmdet.registry import look_up_only

SUFFIXES = ('.json', '.yaml', '.yml')
_MAX_DEPTH = 100
_MAX_TEXT = 1_000_000  # characters of a file
_MAX_SIZE = 200_000  # values of a YAML file and characters in them, each alias counted in full
_SCOPES = ('mmdet', 'mmengine')

_reading = ContextVar('_reading', default=False)  # whether the files that mmengine reads now are configs


class _Loader(getattr(yaml, 'CSafeLoader', yaml.SafeLoader)):
    """Plain values, and the tuples that mmengine writes."""


def _tuple(loader: _Loader, node: yaml.Node) -> tuple:
    return tuple(loader.construct_sequence(node, deep=True))


def _refuse(loader: _Loader, node: yaml.Node) -> None:
    tag = node.tag.replace('tag:yaml.org,2002:', '!!')
    raise UserError(f'line {node.start_mark.line + 1}: {tag} is not plain data, and a YAML file runs no code; a Python '
                    'config may')


_Loader.add_constructor('tag:yaml.org,2002:python/tuple', _tuple)
_Loader.add_constructor(None, _refuse)


def _check_size(text: str) -> None:
    """Refuse YAML whose aliases would grow beyond all memory, before anything is built of it.

    Raises:
        UserError: names the line.
    """
    whole = {}  # anchor: size of what it names
    open_nodes = [(None, 0)]  # (anchor, size so far), outermost first
    for event in yaml.parse(text, Loader=_Loader):
        line = event.start_mark.line + 1
        size = 0
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, 1))
        elif isinstance(event, yaml.ScalarEvent):
            size = 1 + len(event.value)
            whole[event.anchor] = size
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in whole:
                raise UserError(f'line {line}: *{event.anchor} names nothing, or what it stands in')
            size = whole[event.anchor]
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_nodes.pop()
            whole[anchor] = size
        anchor, before = open_nodes[-1]
        open_nodes[-1] = anchor, before + size
        if before + size > _MAX_SIZE or len(open_nodes) > _MAX_DEPTH:
            raise UserError(f'line {line}: too large or too deep for a config ({_MAX_SIZE:,} values and characters, '
                            f'{_MAX_DEPTH} levels, aliases counted in full)')


@register_handler(['yaml', 'yml'])
class SafeYamlHandler(YamlHandler):
    """mmengine's for all YAML files, with a loader that builds plain values alone."""

    def load_from_fileobj(self, file, **kwargs) -> Any:
        if not _reading.get():
            return yaml.load(file, Loader=_Loader)
        text = _config_text(file.read())
        try:
            _check_size(text)
            content = yaml.load(text, Loader=_Loader)
        except UserError:
            raise
        except yaml.MarkedYAMLError as error:
            place = f'line {error.problem_mark.line + 1}: ' if error.problem_mark else ''
            raise UserError(f'{place}not YAML: {error.problem}') from error
        except (yaml.YAMLError, ValueError, TypeError) as error:  # the last two: a date or a key that is none
            raise UserError(f'not YAML: {error}') from error
        return _checked(content)


@register_handler('json')
class CheckedJsonHandler(JsonHandler):
    """mmengine's; what a config holds is checked."""

    def load_from_fileobj(self, file) -> Any:
        if not _reading.get():
            return super().load_from_fileobj(file)
        try:
            return _checked(json.loads(_config_text(file.read())))
        except RecursionError:
            raise UserError(f'too deep for a config ({_MAX_DEPTH} levels)') from None
        except json.JSONDecodeError as error:
            raise UserError(f'line {error.lineno}: not JSON: {error.msg}') from error


@contextmanager
def configs_are_read() -> Iterator[None]:
    """While this lasts, JSON and YAML files that mmengine reads are configs, or bases of configs."""
    token = _reading.set(True)
    try:
        yield
    finally:
        _reading.reset(token)


_PLACEHOLDER = r'\{\{[\'"]?\s*\$(\w+)\s*:\s*([^\s{}\'"]*)\s*[\'"]?\}\}'


def check_placeholders(path: str, text: str) -> None:
    """Refuse what mmengine, which replaces placeholders below a Python config, would take for an endless pattern.

    Raises:
        UserError: names the file and the placeholder.
    """
    for default in re.findall(r'\{\{[\'"]?\s*\$\w+\s*:\s*(\S*)', text):
        if re.search(r'[*+?(|]', default):
            raise UserError(f'{path}: {{{{$...:{default}: a default without * + ? ( | is needed below a Python config')


def _config_text(text: str) -> str:
    """A config's text with ``{{$NAME:default}}`` replaced by variables of the environment."""
    if len(text) > _MAX_TEXT:
        raise UserError(f'{len(text):,} characters are too many for a config')

    def value(match: re.Match) -> str:
        found = os.environ.get(match[1]) or match[2]
        if not found:
            raise UserError(f'{match[0]}: the environment has no variable {match[1]}, and there is no default')
        return found

    return re.sub(_PLACEHOLDER, value, text)


def _checked(content: Any) -> dict:
    """What the file of a config holds, if it asks for no code."""
    if not isinstance(content, dict):
        raise UserError(f'a config is a mapping of keys to values, not a {type(content).__name__}')
    bases = content.get('_base_') or []
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str) or not base.lower().endswith(SUFFIXES) or '::' in base:
            raise UserError(f'_base_ {base!r}: a JSON or YAML config runs no code, so its bases are '
                            f'{at_most(SUFFIXES)} files; to build on a Python config, write a Python config')
    check_data(content)
    return content


def check_data(content: dict[str, Any], origin: str = 'a JSON or YAML config') -> None:
    """Check that data asks for no code; its texts are looked up in the registries alone from now on.

    Args:
        content: what a file holds, or --cfg-options: dotted keys and their values.

    Raises:
        UserError: names the key.
    """
    names = set()
    nodes = [(content, 0)]
    while nodes:
        node, depth = nodes.pop()
        if depth > _MAX_DEPTH:
            raise UserError(f'{origin}: too deep for a config ({_MAX_DEPTH} levels)')
        if isinstance(node, str):
            names.add(node)
        elif isinstance(node, dict):
            for key, value in node.items():
                _check_key(str(key), value, depth, origin)
                nodes.append((value, depth + 1))
        elif isinstance(node, (list, tuple)):
            nodes.extend((value, depth + 1) for value in node)
    look_up_only(names)


def _check_key(key: str, value: Any, depth: int, origin: str) -> None:
    first, last = key.partition('.')[0], key.rpartition('.')[2]
    if depth == 0 and first == 'custom_imports':
        raise UserError(f'custom_imports: {origin} runs no code; name the file in a Python config')
    if last in ('default_scope', '_scope_') and value is not None and value not in _SCOPES:
        raise UserError(f'{key}={value!r}: {origin} can choose {" or ".join(_SCOPES)} alone; a Python config may '
                        'choose another')
