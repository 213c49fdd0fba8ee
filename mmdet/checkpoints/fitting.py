"""Whether weights fit a model, and what is said where they do not."""

from typing import Any

import torch
from torch import Tensor, nn

from mmdet.config.errors import UserError, at_most, say


def fit_weights(model: nn.Module, weights: dict[str, Any], source: str, strict: bool = True) -> dict[str, Any]:
    """Check weights against a model, and complete them so that they load without a warning.

    Args:
        strict: every weight must have its place; otherwise half of the model's keys suffice (a detector
            fine-tuned to other classes), and what does not fit keeps the model's own values.

    Returns:
        the weights to load: exactly the model's keys.

    Raises:
        UserError: names at most ten keys or shapes that do not fit, or hold no numbers.
    """
    own = model.state_dict()
    missing = [k for k in own if k not in weights and not k.endswith(('num_batches_tracked', '_extra_state'))]
    unexpected = [k for k in weights if k not in own]
    reshaped = {
        k: f'{k} (file {tuple(weights[k].shape)}, model {tuple(v.shape)})'
        for k, v in own.items()
        if isinstance(weights.get(k), Tensor) and isinstance(v, Tensor) and weights[k].shape != v.shape
    }
    kinds = {'not in the file': missing, 'not in the model': unexpected, 'shape': reshaped.values()}
    kinds = {title: keys for title, keys in kinds.items() if keys}
    problems = [f'{len(keys)} {title}: {at_most(keys, min(4, 10 // len(kinds)))}' for title, keys in kinds.items()]
    fitting = len(own) - len(missing) - len(reshaped)
    if problems and (strict or 2 * fitting < len(own)):
        raise UserError(f'{source} does not fit {type(model).__name__}: {fitting} of {len(own)} weights have '
                        f'their place. {"; ".join(problems)}. Use the config it was trained with')
    if problems:
        say(f'{source}: {fitting} of {len(own)} weights loaded, the others keep their initial values. '
            f'{"; ".join(problems)}')
    broken = [k for k, v in weights.items() if k in own and isinstance(v, Tensor) and not torch.isfinite(v).all()]
    if broken:
        raise UserError(f'{source}: NaN or infinity in {len(broken)} of {len(own)} weights ({at_most(broken, 4)}): '
                        'its training diverged. An earlier checkpoint may be whole')
    return {k: weights[k] if k in weights and k not in reshaped else v for k, v in own.items()}
