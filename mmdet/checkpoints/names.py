"""What the files of foreign projects share: recognising them by their keys, and renaming these.

A table is a list of pairs of patterns. ``{n}`` stands for a number, ``{p}`` for a name without dots, ``{rest}`` for
anything; the same field has the same value on both sides.

>>> rename({'backbone.body.conv1.weight': 0}, [('backbone.body.{rest}', 'backbone.{rest}')]).state
{'backbone.conv1.weight': 0}
"""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor

from mmdet.config.errors import UserError, at_most

_FIELDS = {'n': r'\d+', 'p': r'\w+', 'rest': r'.+'}

Table = list[tuple[str, str]]


# mmdetection 0.x to early 2.x kept the convolution that finds a deformable convolution's offsets beside it.
OFFSETS: Table = [('{rest}.conv2_offset.{p}', '{rest}.conv2.conv_offset.{p}')]

# In 0.x to early 2.x the layers that SSD adds were the backbone's, in one row, and its output layers stood alone.
SSD: Table = [
    ('backbone.l2_norm.{p}', 'neck.l2_norm.{p}'),
    *((f'backbone.extra.{n}.{{p}}', f'neck.extra_layers.{n // 2}.{n % 2}.conv.{{p}}') for n in range(12)),
    ('bbox_head.cls_convs.{n}.{p}', 'bbox_head.cls_convs.{n}.0.{p}'),
    ('bbox_head.reg_convs.{n}.{p}', 'bbox_head.reg_convs.{n}.0.{p}'),
]


class Renamed(NamedTuple):
    """`state` under the new names, old -> new of the keys that changed, and the keys that no pattern knows."""

    state: dict[str, Any]
    changed: dict[str, str]
    unknown: list[str]


class Converted(NamedTuple):
    """Weights under our names.

    source: what the file was recognised as, and `evidence` by what; changed: old -> new name of the renamed keys;
    dropped: keys left out, each with its reason; reordered: our keys whose rows (classes, channels) were moved.
    """

    state_dict: dict[str, Tensor]
    source: str
    evidence: str = ''
    changed: dict[str, str] = {}
    dropped: dict[str, str] = {}
    reordered: list[str] = []

    def summary(self) -> str:
        """One line for the log."""
        done = [f'{len(self.state_dict)} arrays']
        for count, what in (
            (len(self.changed), 'keys renamed'),
            (len(self.reordered), 'output layers reordered'),
            (len(self.dropped), 'keys dropped'),
        ):
            if count:
                done.append(f'{count} {what}')
        return f'{self.source}, recognised by {self.evidence}: {", ".join(done)}'


def together(keys: Iterable[str], *groups: tuple[str, ...]) -> str | None:
    """One key that begins like a member of each group; None unless every group has one, since one key proves nothing.

    >>> together(['conv1_w', 'res2_0_branch2a_w'], ('conv1_',), ('res2_', 'res_conv1_'))
    'conv1_w with res2_0_branch2a_w'
    """
    found = [next((key for key in keys if key.startswith(group)), None) for group in groups]
    return ' with '.join(found) if all(found) else None


def refuse_unknown(project: str, keys: list[str]) -> None:
    """Raise UserError where keys have no counterpart in `project`."""
    if keys:
        raise UserError(f'{len(keys)} keys have no counterpart in {project}: {at_most(keys)}')


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
