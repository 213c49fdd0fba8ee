"""The door: from an opened file of any known project into one of our models, or into a part of one."""

from typing import Any

from mmengine.config import Config
from torch import Tensor, nn

from mmdet.checkpoints import legacy
from mmdet.checkpoints.fitting import fit_weights
from mmdet.checkpoints.formats import UnknownFormat, convert
from mmdet.checkpoints.pretrained import load_pretrained
from mmdet.checkpoints.reading import Checkpoint
from mmdet.config.errors import UserError, say


def num_classes_of(model: nn.Module) -> int | None:
    """Foreground classes of a detector; None for one that has none (RPN) or keeps them elsewhere."""
    heads = (getattr(model, 'roi_head', None), getattr(model, 'bbox_head', None))
    return next((head.num_classes for head in heads if hasattr(head, 'num_classes')), None)


def weights_for(model: nn.Module, checkpoint: Checkpoint, strict: bool = True) -> dict[str, Any]:
    """What of an opened file `model` is to load: exactly its keys.

    Where the file was saved here, or its keys are the model's, its weights are taken as they are. Only otherwise is the
    format of another project looked for; the log says then which was found, and by what.

    Args:
        strict: every weight must have its place, see `fit_weights`.

    Raises:
        UserError: unknown format, a backbone alone, or keys, shapes or values that do not fit.
    """
    weights = checkpoint.weights
    if not checkpoint.saved_here and weights.keys() != model.state_dict().keys():
        weights = _convert_for(model, checkpoint)
    return fit_weights(model, weights, checkpoint.path, strict)


def keys_that_fit(model: nn.Module, checkpoint: Checkpoint) -> set[str]:
    """The keys of `model` whose values `weights_for` would take from an opened file; nothing is said or refused."""
    weights = checkpoint.weights
    if not checkpoint.saved_here and weights.keys() != model.state_dict().keys():
        try:
            weights = convert(checkpoint, num_classes_of(model)).state_dict
        except UserError:
            pass  # to be said when it is loaded
    shapes = {key: value.shape for key, value in weights.items() if isinstance(value, Tensor)}
    return {key for key, value in model.state_dict().items() if shapes.get(key) == getattr(value, 'shape', None)}


def _convert_for(model: nn.Module, checkpoint: Checkpoint) -> dict[str, Tensor]:
    try:
        converted = convert(checkpoint, num_classes_of(model))
    except UnknownFormat as error:
        if checkpoint.weights.keys() & model.state_dict().keys():
            return checkpoint.weights
        raise UserError(f'{checkpoint}: {error}') from error
    except UserError as error:
        raise UserError(f'{checkpoint}: {error}') from error
    if all(key.startswith('backbone.') for key in converted.state_dict):
        raise UserError(
            f'{checkpoint} holds a backbone alone ({converted.source}), not a detector; to train from it use '
            f'--cfg-options model.backbone.init_cfg.checkpoint={checkpoint}'
        )
    if converted.changed or converted.reordered:
        say(f'{checkpoint}: {converted.summary()}')
    return converted.state_dict


def load_checkpoint(model: nn.Module, file: str | Checkpoint, strict: bool = True) -> Checkpoint:
    """Fill a model with the weights of a file of any known project, and return the opened file.

    A file of mmdetection 0.x / 1.x also needs `adapt_config` before the model is built.

    Args:
        file: a path, an address (see `load_pretrained`), or the file already opened.

    Raises:
        UserError: missing, damaged or refused file; see `weights_for`.
    """
    checkpoint = _opened(file)
    model.load_state_dict(weights_for(model, checkpoint, strict))
    return checkpoint


def _opened(file: str | Checkpoint) -> Checkpoint:
    return file if isinstance(file, Checkpoint) else load_pretrained(file)


# ---------------------------------------------------------------------- a part of a model


def weights_for_part(part: nn.Module, checkpoint: Checkpoint, prefix: str | None = None) -> dict[str, Any]:
    """`weights_for` a part such as the backbone, which must find all its weights in the file.

    They stand there under its own names, as part of a detector, or under the names of a known project. Branches that
    the part does not have, such as a classifier, are left out.

    Args:
        prefix: where in the file the part stands; without it, at the top or under ``backbone.``.
    """
    own = part.state_dict()
    needed = {key for key in own if not key.endswith('num_batches_tracked')}
    places = ['', 'backbone.'] if prefix is None else [prefix]
    candidates = [_below(place, checkpoint.weights) for place in places]
    own_names = getattr(part, 'own_names', dict)  # a backbone of another library knows that library's names
    candidates += map(own_names, candidates[:])
    found = next((weights for weights in candidates if needed <= weights.keys()), None)
    if found is None:
        found = candidates[0] if prefix else own_names(backbone_weights(checkpoint))
    branches = {key.partition('.')[0] for key in own}
    found = {key: value for key, value in found.items() if key.partition('.')[0] in branches}
    return fit_weights(part, found, checkpoint.path)


def backbone_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The backbone of a backbone's or a detector's weights, without prefix.

    Raises:
        UserError: unknown format.
    """
    try:
        return _below('backbone.', convert(checkpoint).state_dict)
    except UserError as error:
        raise UserError(f'{checkpoint}: {error}') from error


def _below(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


# ---------------------------------------------------------------------- options that a file asks for


def needs_legacy_options(checkpoint: Checkpoint) -> bool:
    """Whether the weights follow the conventions of mmdetection 0.x / 1.x."""
    return legacy.recognise(checkpoint.weights, checkpoint.meta) is not None


def adapt_config(cfg: Config, file: str | Checkpoint) -> dict[str, Any]:
    """Set the model, pipeline and metric options that a file's conventions ask for, in place, and log them.

    Returns:
        the options set, dotted key -> value; empty for all but mmdetection 0.x / 1.x.
    """
    checkpoint = _opened(file)
    evidence = legacy.recognise(checkpoint.weights, checkpoint.meta)
    if not evidence:
        return {}
    changed = legacy.apply_options(cfg)
    options = ', '.join(f'{key}={value}' for key, value in changed.items())
    say(f'{checkpoint} is of mmdetection 0.x / 1.x, recognised by {evidence}; its conventions are set: {options}')
    return changed
