"""The one rule by which a config names the layers inside a model.

``dict(type=NAME, **options)``: NAME is registered in `mmdet.registry.MODELS`, by this package, by mmcv once
``mmcv.cnn`` is imported, or by a file of the user's own (`custom_imports`); or it is the class itself. The class is
called with what its place gives, then with the options by their names:

    conv_cfg       cls(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, **options)
                   as nn.Conv2d, some of it by name; (N, C_in, H, W) -> (N, C_out, H', W')
    norm_cfg       cls(num_features, **options), by the name `num_channels` where the class calls it so
    act_cfg        cls(**options), with inplace=True unless the config says otherwise or there is no such option
    upsample_cfg   cls(in_channels, out_channels, scale_factor, **options); (N, C_in, H, W) -> (N, C_out, s H, s W)
"""

import inspect
from collections.abc import Iterable

from torch import nn

from mmdet.config.errors import UserError, suggest
from mmdet.registry import MODELS


def layer_class(place: str, cfg: dict, known: Iterable[str]) -> tuple[type[nn.Module], dict]:
    """The class that `cfg` names, and its options.

    Args:
        place: the option's name, for messages.
        known: names to suggest.

    Raises:
        UserError: not a dict with a type, or an unknown one.
    """
    if not isinstance(cfg, dict) or 'type' not in cfg:
        raise UserError(f"{place}={cfg!r} must be a dict with a 'type', such as {', '.join(known)}")
    options = dict(cfg)
    kind = options.pop('type')
    if inspect.isclass(kind):
        return kind, options
    # `get` imports every subpackage that may register it
    layer = (MODELS.module_dict.get(kind) or MODELS.get(kind)) if isinstance(kind, str) else None
    if layer is None:
        raise UserError(
            f'{place}={cfg!r}: unknown type {kind!r}.{suggest(str(kind), known)} There are {", ".join(known)}, and '
            'what is registered in MODELS (custom_imports)'
        )
    return layer, options


def build_layer(place: str, cfg: dict, layer: type[nn.Module], *args, **kwargs) -> nn.Module:
    """``layer(*args, **kwargs)``.

    Raises:
        UserError: an option that the class does not have, or a value that one of torch's or of ours does not take. An
            error inside another class is left as it is.
    """
    try:
        inspect.signature(layer).bind(*args, **kwargs)
    except TypeError as error:
        raise UserError(f'{place}={cfg!r} does not fit {layer.__name__}: {error}') from None
    try:
        return layer(*args, **kwargs)
    except (TypeError, ValueError) as error:  # TypeError: a word where a number belongs
        if layer.__module__.partition('.')[0] not in ('torch', 'mmdet'):
            raise
        raise UserError(f'{place}={cfg!r} does not fit {layer.__name__}: {error}') from None
