"""Which project a checkpoint comes from, and its weights under our names.

`convert` is the one door: it looks at the keys (and at `meta` where two formats share their keys) and gives a
`Converted`. Our own names are mmdet 3's, so its files pass through unchanged.
"""

from typing import Any, NamedTuple

from torch import Tensor

from mmdet.checkpoints import detectron2, legacy, torchvision
from mmdet.checkpoints.classes import (
    add_background_column,
    background_first,
    background_last,
    drop_background_column,
)
from mmdet.checkpoints.files import to_plain, weights_of
from mmdet.checkpoints.names import rename, reverse
from mmdet.config.errors import UserError, at_most


class UnknownFormat(UserError):
    """No project that we know writes such keys."""


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


def meta_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What the file says about itself; empty where it says nothing."""
    meta = checkpoint.get('meta')
    return meta if isinstance(meta, dict) else {}


_KEPT_META = (
    'mmdet_version', 'mmcv_version', 'mmengine_version', 'epoch', 'iter', 'dataset_meta', 'CLASSES', 'conventions',
    'converted_from',
)  # fmt: skip


def plain_meta(meta: dict[str, Any]) -> dict[str, Any]:
    """What of `meta` may be published: versions and classes, no config, seed, host or path."""
    return {key: to_plain(meta[key]) for key in _KEPT_META if key in meta}


def convert(checkpoint: dict[str, Any], num_classes: int | None = None) -> Converted:
    """The weights of a checkpoint of any known format, under our names and in our class order.

    Args:
        checkpoint: what the file holds (see `mmdet.checkpoints.read_checkpoint`).
        num_classes: classes of the model to be filled; needed only where COCO's 91 outputs shall not become 80.

    Raises:
        UnknownFormat: names the first keys.
        UserError: keys of a known format that have no counterpart here.
    """
    state = weights_of(checkpoint)
    meta = meta_of(checkpoint)
    if not state:
        raise UserError('no weights in it')
    if any(key.startswith('backbone.body.') for key in state):
        return _from_torchvision(state, num_classes)
    if any(key.startswith('backbone.bottom_up.') for key in state):
        return _from_detectron2(state)
    if any(key.startswith(('backbone.stem.', 'backbone.res4.')) for key in state):
        raise UserError('a detectron2 model without FPN (C4 or DC5), which this project does not have')
    if 'conv1_w' in state:
        return _from_caffe2(state)
    if any(key.startswith('backbone.') for key in state):
        return _from_mmdet(state, meta)
    if 'layer1.0.conv1.weight' in state:
        return _from_resnet(state)
    raise UnknownFormat(
        f'no checkpoint of a known detector: the first of {len(state)} arrays are {at_most(state, 5)}. Known are '
        'mmdetection, torchvision and detectron2 (docs/compatibility.md)'
    )


def _from_mmdet(state: dict[str, Tensor], meta: dict[str, Any]) -> Converted:
    if not legacy.is_legacy(state, meta):
        version = meta.get('mmdet_version')
        source = f'mmdetection {version}' if version else 'mmdetection 2.x / 3.x names'
        changed = {key: key.replace('bbox_', 'rpn_', 1) for key in state if key.startswith('bbox_head.rpn_')}  # 3.x RPN
        return Converted({changed.get(key, key): value for key, value in state.items()}, source, changed, {}, [])
    version = meta.get('mmdet_version', '0.x / 1.x')
    if meta.get('conventions') == 'mmdet1':  # a file of tools/convert_checkpoint.py
        return Converted(state, f'mmdetection {version}, converted', {}, {}, [], legacy=True)
    changed: dict[str, str] = {}
    reordered: list[str] = []
    if any(key.startswith(('bbox_head.fc_', 'bbox_head.0.', 'mask_head.')) for key in state):
        renamed = rename(state, legacy.TABLE)
        state, changed = renamed.state, renamed.changed
        reordered = background_last(state)
    reordered += legacy.move_eps_inside(state)
    return Converted(state, f'mmdetection {version}', changed, {}, reordered, legacy=True)


def _from_detectron2(state: dict[str, Tensor]) -> Converted:
    dropped = {key: 'not a weight' for key in state if detectron2.NOT_WEIGHTS.fullmatch(key)}
    state = {key: value for key, value in state.items() if key not in dropped}
    renamed = rename(state, detectron2.table(state))
    _refuse_unknown('our models', renamed.unknown)
    named = detectron2.name_norms(renamed.state)
    new = detectron2.mask_head_for_each_stage(named)
    changed = dict(zip(state, named))
    if new.keys() != named.keys():
        changed = {old: name.replace('mask_head.', 'mask_head.{0,1,2}.') for old, name in changed.items()}
    return Converted(new, 'detectron2', changed, dropped, detectron2.reorder_anchors(new))


def _from_caffe2(state: dict[str, Tensor]) -> Converted:
    weights, dropped = detectron2.from_caffe2(state)
    source = 'caffe2 backbone'
    if 'no part of a backbone' in dropped.values():
        source = "backbone of a Caffe2 detector, whose other weights follow older conventions and stay out"
    return Converted({f'backbone.{key}': value for key, value in weights.items()}, source, {}, dropped, [])


def _from_resnet(state: dict[str, Tensor]) -> Converted:
    dropped = {key: 'ImageNet classifier' for key in state if key.startswith('fc.')}
    changed = {key: f'backbone.{key}' for key in state if key not in dropped}
    return Converted(
        {new: state[old] for old, new in changed.items()}, 'ResNet backbone (torchvision names)', changed, dropped, []
    )


def _from_torchvision(state: dict[str, Tensor], num_classes: int | None) -> Converted:
    given = set(state)
    state = torchvision.modern_keys(state)
    renamed = rename(state, torchvision.table(False, state))
    new = dict(renamed.state)
    _refuse_unknown('our models', renamed.unknown)
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
