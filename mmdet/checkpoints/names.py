"""Two spellings of the same state-dict keys, and renaming from either to the other.

A table is a list of pairs of patterns. ``{n}`` stands for a number, ``{p}`` for a name without dots, ``{rest}`` for
anything; the same field has the same value on both sides.

>>> rename({'backbone.body.conv1.weight': 0}, [('backbone.body.{rest}', 'backbone.{rest}')]).state
{'backbone.conv1.weight': 0}
"""

import re
from typing import Any, NamedTuple

_FIELDS = {'n': r'\d+', 'p': r'\w+', 'rest': r'.+'}

Table = list[tuple[str, str]]


class Renamed(NamedTuple):
    """`state` under the new names, old -> new of the keys that changed, and the keys that no pattern knows."""

    state: dict[str, Any]
    changed: dict[str, str]
    unknown: list[str]


def reverse(table: Table) -> Table:
    """The same table in the other direction."""
    return [(new, old) for old, new in table]


def rename(state: dict[str, Any], table: Table) -> Renamed:
    """Give every key the name that the first matching pair says."""
    compiled = [(_compile(old), new) for old, new in table]
    renamed, changed, unknown = {}, {}, []
    for key, value in state.items():
        for pattern, template in compiled:
            match = pattern.fullmatch(key)
            if match:
                new = template.format(**match.groupdict())
                renamed[new] = value
                if new != key:
                    changed[key] = new
                break
        else:
            unknown.append(key)
    return Renamed(renamed, changed, unknown)


def _compile(template: str) -> re.Pattern:
    parts = re.split(r'\{(\w+)\}', template)  # text and field names in turn
    seen: set[str] = set()
    pattern = ''
    for index, part in enumerate(parts):
        if index % 2 == 0:
            pattern += re.escape(part)
        elif part in seen:
            pattern += f'(?P={part})'
        else:
            seen.add(part)
            pattern += f'(?P<{part}>{_FIELDS[part]})'
    return re.compile(pattern)
