"""Which project a file comes from, and its weights under our names.

A project is recognised by what is unmistakable, its meta or several keys together, and never by one prefix: models that
people write here may use any name. Our own names are mmdetection 3's, so its files pass through unchanged.
"""

from typing import Any

from torch import Tensor

from mmdet.checkpoints import detectron2, efficientnet_pytorch, legacy, torchvision
from mmdet.checkpoints.names import OFFSETS, SSD, Converted, rename, together
from mmdet.checkpoints.reading import Checkpoint
from mmdet.config.errors import UserError, at_most


class UnknownFormat(UserError):
    """No project that we know writes such keys."""


def convert(content: dict[str, Any], num_classes: int | None = None) -> Converted:
    """The weights of a file of any known project, under our names and in our class order.

    Args:
        content: what the file holds, a `Checkpoint` or a dict like it.
        num_classes: classes of the model to be filled; needed only where COCO's 91 outputs shall not become 80.

    Raises:
        UnknownFormat: names the first keys.
        UserError: keys of a known format that have no counterpart here.
    """
    checkpoint = Checkpoint(content, '')
    state, meta = checkpoint.weights, checkpoint.meta
    if not state:
        raise UserError('no weights in it')
    if checkpoint.saved_here:
        return Converted(state, 'a file of this toolbox', 'its meta')
    for project in _PROJECTS:
        converted = project(state, meta, num_classes)
        if converted is not None:
            return converted
    raise UnknownFormat(
        f'not a checkpoint of a known detector: the first of {len(state)} arrays are {at_most(state, 5)}. Known are '
        'mmdetection, torchvision and detectron2 (docs/compatibility.md)'
    )


def _our_names(state: dict[str, Tensor], meta: dict[str, Any], num_classes: int | None) -> Converted | None:
    """mmdetection 2.x and 3.x: an RPN alone has names of its own, deformable convolutions and SSD had some at first."""
    evidence = together(state, ('backbone.',))
    if not evidence:
        return None
    version = meta.get('mmdet_version')
    source = f'mmdetection {version}' if version else 'mmdetection 2.x / 3.x names'
    rpn = together(state, ('bbox_head.rpn_conv.',), ('bbox_head.rpn_cls.',), ('bbox_head.rpn_reg.',))
    own_name = [('bbox_head.rpn_{rest}', 'rpn_head.rpn_{rest}')] if rpn else []
    renamed = rename(state, [*OFFSETS, *SSD, *own_name, ('{rest}', '{rest}')])
    return Converted(renamed.state, source, rpn or evidence, renamed.changed)


_PROJECTS = (
    legacy.convert, torchvision.convert, detectron2.convert, detectron2.convert_caffe2, torchvision.convert_backbone,
    efficientnet_pytorch.convert, _our_names,
)  # fmt: skip
