"""Which project a checkpoint comes from, and its weights under our names.

`convert` is the one door: it looks at the keys (and at `meta` where two formats share their keys) and gives a
`Converted`. Our own names are mmdet 3's, so its files pass through unchanged.
"""

from typing import Any, NamedTuple

from torch import Tensor

from mmdet.checkpoints import torchvision
from mmdet.checkpoints.classes import (
    add_background_column,
    background_first,
    background_last,
    drop_background_column,
)
from mmdet.checkpoints.names import rename, reverse
from mmdet.runtime import UserError
from mmdet.runtime.checkpoint import weights_of
from mmdet.runtime.errors import at_most


class Converted(NamedTuple):
    """Weights under our names.

    source: what the file was recognised as; changed: old -> new name of the renamed keys; dropped: keys left out, each
    with its reason; reordered: our keys whose rows (classes, channels) were moved; legacy: the model must
    follow the conventions of mmdetection 0.x / 1.x (see `mmdet.checkpoints.legacy`).
    """

    state_dict: dict[str, Tensor]
    source: str
    changed: dict[str, str]
    dropped: dict[str, str]
    reordered: list[str]
    legacy: bool = False

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
        return f'{self.source}: {", ".join(done)}'


def convert(checkpoint: dict[str, Any], num_classes: int | None = None) -> Converted:
    """The weights of a checkpoint of any known format, under our names and in our class order.

    Args:
        checkpoint: what the file holds (see `mmdet.checkpoints.read`).
        num_classes: classes of the model to be filled; needed only where COCO's 91 outputs shall not become 80.

    Raises:
        UserError: no known format; names the first keys.
    """
    state = weights_of(checkpoint)
    meta = checkpoint.get('meta') if isinstance(checkpoint.get('meta'), dict) else {}
    if any(key.startswith('backbone.body.') for key in state):
        return _from_torchvision(state, num_classes)
    raise UserError(f'no known checkpoint format; the first keys are {at_most(state, 5)}')


def _from_torchvision(state: dict[str, Tensor], num_classes: int | None) -> Converted:
    given = set(state)
    state = torchvision.modern_keys(state)
    renamed = rename(state, torchvision.table(False, state))
    new = dict(renamed.state)
    _refuse_unknown('torchvision', renamed.unknown)
    reordered = background_last(new, num_classes)
    kind = 'Faster R-CNN'
    if 'bbox_head.retina_reg.weight' in new:
        kind = 'RetinaNet'
        reordered += drop_background_column(new, len(new['bbox_head.retina_reg.weight']) // 4, num_classes)
    elif 'roi_head.mask_head.upsample.weight' in new:
        kind = 'Mask R-CNN'
    changed = {old: name for old, name in renamed.changed.items() if old in given}
    return Converted(new, f'torchvision {kind}', changed, {}, reordered)


def to_torchvision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our weights of Faster R-CNN, Mask R-CNN or RetinaNet under torchvision's names, background first.

    The model to load them has ``num_classes=C + 1``.

    Raises:
        UserError: names keys that have no place there.
    """
    state = dict(state)
    if any(key.startswith('roi_head.bbox_head.0.') for key in state):
        raise UserError('torchvision has no Cascade R-CNN')
    background_first(state)
    if 'bbox_head.retina_reg.weight' in state:
        add_background_column(state, len(state['bbox_head.retina_reg.weight']) // 4)
    renamed = rename(state, reverse(torchvision.table(True, state)))
    _refuse_unknown('torchvision', renamed.unknown)
    return renamed.state


def _refuse_unknown(project: str, keys: list[str]) -> None:
    if keys:
        raise UserError(f'{len(keys)} keys have no counterpart in {project}: {at_most(keys)}')
