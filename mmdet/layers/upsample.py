"""Upsampling by a whole factor, as in a mask head.

N, C, H, W    RoIs, channels, height, width; s the factor
"""

from torch import nn

from mmdet.config.errors import UserError
from mmdet.layers.build import build_layer, layer_class
from mmdet.registry import MODELS

UPSAMPLE_NAMES = ['deconv', 'nearest', 'bilinear']


@MODELS.register_module('deconv')
class Deconv(nn.ConvTranspose2d):
    """Transposed convolution whose kernel and stride are both the factor: (N, C, H, W) -> (N, C', s H, s W)."""

    def __init__(self, in_channels: int, out_channels: int, scale_factor: int = 2):
        super().__init__(in_channels, out_channels, scale_factor, stride=scale_factor)


class Unchanged(nn.Identity):
    """No upsampling."""

    def __init__(self, in_channels: int, out_channels: int, scale_factor: int):
        if in_channels != out_channels:
            raise UserError(f'no upsampling keeps the {in_channels} channels, {out_channels} are asked for')
        super().__init__()


class _Interpolation(nn.Upsample):
    def __init__(self, in_channels: int, out_channels: int, scale_factor: int = 2):
        if in_channels != out_channels:
            raise UserError(f'interpolation keeps the {in_channels} channels, {out_channels} are asked for')
        super().__init__(scale_factor=scale_factor, mode=self.mode)


@MODELS.register_module('nearest')
class Nearest(_Interpolation):
    """Repetition of each position."""

    mode = 'nearest'


@MODELS.register_module('bilinear')
class Bilinear(_Interpolation):
    """Bilinear interpolation between the centres of the positions."""

    mode = 'bilinear'


def build_upsample_layer(cfg: dict, in_channels: int, out_channels: int) -> nn.Module:
    """The upsampling that ``upsample_cfg`` names, by `scale_factor` (2 by default); see `mmdet.layers.build`.

    ``dict(type=None)`` is none: the map stays as it is.

    Raises:
        UserError: an unknown type, or an option that it does not have.
    """
    if isinstance(cfg, dict) and cfg.get('type', 'none') is None:
        cfg = dict(cfg, type=Unchanged)
    layer, options = layer_class('upsample_cfg', cfg, UPSAMPLE_NAMES)
    return build_layer('upsample_cfg', cfg, layer, in_channels, out_channels, options.pop('scale_factor', 2), **options)
