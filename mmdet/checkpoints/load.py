"""From a file of any known project into one of our models."""

from typing import Any

from mmengine.config import Config
from torch import Tensor, nn

from mmdet.checkpoints import legacy
from mmdet.checkpoints.files import fit_weights, read_checkpoint, weights_of
from mmdet.checkpoints.formats import Converted, UnknownFormat, convert, meta_of
from mmdet.config.errors import UserError, say


def num_classes_of(model: nn.Module) -> int | None:
    """Foreground classes of a detector; None for one that has none (RPN)."""
    for head in (getattr(model, 'roi_head', None), getattr(model, 'bbox_head', None)):
        if head is not None:
            return head.num_classes
    return None


def convert_for(model: nn.Module, checkpoint: dict[str, Any], source: str) -> Converted:
    """`convert` for the classes of `model`.

    Raises:
        UserError: no known format, or a backbone alone; names `source`.
    """
    try:
        converted = convert(checkpoint, num_classes_of(model))
    except UnknownFormat as error:
        weights = weights_of(checkpoint)
        if not weights.keys() & model.state_dict().keys():
            raise UserError(f'{source}: {error}') from error
        return Converted(weights, "weights under the model's own names", {}, {}, [])
    except UserError as error:
        raise UserError(f'{source}: {error}') from error
    if all(key.startswith('backbone.') for key in converted.state_dict):
        raise UserError(
            f'{source} holds a backbone alone ({converted.source}), no detector; to train from it use '
            f'--cfg-options model.backbone.init_cfg.checkpoint={source}'
        )
    return converted


def backbone_weights(weights: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """The backbone of a backbone's or a detector's weights, without prefix.

    Raises:
        UserError: unknown format; names `source`.
    """
    try:
        state = convert(weights).state_dict
    except UnknownFormat as error:
        raise UserError(f'{source}: {error}') from error
    return {key.removeprefix('backbone.'): value for key, value in state.items() if key.startswith('backbone.')}


def load_checkpoint(model: nn.Module, path: str, strict: bool = True) -> dict[str, Any]:
    """Fill a model with the weights of a file of any known project; returns the rest of the file.

    A file of mmdetection 0.x / 1.x also needs `adapt_config` before the model is built.

    Raises:
        FileNotFoundError, UserError: missing, damaged or refused file; unknown format; keys, shapes or number of
            classes that do not fit (at most ten are named).
    """
    checkpoint = read_checkpoint(path)
    converted = convert_for(model, checkpoint, path)
    model.load_state_dict(fit_weights(model, converted.state_dict, path, strict))
    if converted.changed or converted.reordered:
        say(converted.summary())
    return checkpoint


def needs_legacy_options(path: str) -> bool:
    """Whether the file's weights follow the conventions of mmdetection 0.x / 1.x."""
    checkpoint = read_checkpoint(path)
    return legacy.is_legacy(weights_of(checkpoint), meta_of(checkpoint))


def adapt_config(cfg: Config, path: str, is_legacy: bool | None = None) -> dict[str, Any]:
    """Set the model, pipeline and metric options that a checkpoint's conventions ask for, in place, and log them.

    Args:
        is_legacy: what `needs_legacy_options` says, if already known (one process reads the file for all).

    Returns:
        the options set, dotted key -> value; empty for all but mmdetection 0.x / 1.x.
    """
    if not (needs_legacy_options(path) if is_legacy is None else is_legacy):
        return {}
    changed = legacy.apply_options(cfg)
    options = ', '.join(f'{key}={value}' for key, value in changed.items())
    say(f'{path} is of mmdetection 0.x / 1.x; its conventions are set: {options}')
    return changed
