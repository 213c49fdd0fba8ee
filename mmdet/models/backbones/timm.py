"""Any model of timm that gives feature maps; the shape letters are those of library.py."""

from collections.abc import Sequence

from torch import Tensor, nn

from mmdet.config.errors import UserError, suggest
from mmdet.models.backbones.library import LibraryBackbone
from mmdet.registry import MODELS


@MODELS.register_module()
class TimmBackbone(LibraryBackbone):
    """A model of timm, returning the maps of `out_indices`.

    Images have to be normalised as the model was trained: ``mean`` and ``std`` of ``timm.get_pretrained_cfg(NAME)``
    times 255 are those of the detector's data_preprocessor.

    Args:
        model_name: as in ``timm.list_models()``, 'tf_efficientnet_lite0'.
        out_indices: which of its maps, -1 for the coarsest. Most convolutional models have five, of strides 2 to 32, or
            four, of strides 4 to 32: the default are those of strides 4 to 32.
        frozen_stages: counts all maps of the model: 2 freezes what makes those of strides 2 and 4, where it has both.
        norm_cfg, norm_eval, init_cfg: see `LibraryBackbone`. ``init_cfg=dict(type='Pretrained', checkpoint=FILE)``
            takes a file of timm's whole model.
        options: those of ``timm.create_model`` but `pretrained`: ``drop_path_rate=0.1``.

    Raises:
        ImportError: timm is not installed.
        UserError: no such model, one without maps, or options that do not go together.
    """

    network_name = 'timm_model'

    def __init__(
        self,
        model_name: str,
        out_indices: Sequence[int] = (-4, -3, -2, -1),
        frozen_stages: int = -1,
        norm_cfg: dict | None = None,
        norm_eval: bool = True,
        init_cfg: dict | list[dict] | None = None,
        **options,
    ):
        try:
            import timm
        except ImportError as error:
            raise ImportError('TimmBackbone needs timm: pip install timm') from error
        if options.pop('pretrained', False):
            raise UserError(
                "TimmBackbone: pretrained=True would download weights at every start; give a file, init_cfg=dict(type="
                "'Pretrained', checkpoint='FILE')"
            )
        options.pop('features_only', None)
        if not timm.is_model(model_name):
            raise UserError(f'TimmBackbone: timm has no model {model_name!r}.{suggest(model_name, timm.list_models())}')
        try:
            net = timm.create_model(model_name, features_only=True, out_indices=tuple(out_indices), **options)
        except (RuntimeError, AssertionError, IndexError) as error:
            raise UserError(
                f'TimmBackbone: {model_name} does not give the maps out_indices={tuple(out_indices)}: '
                f'{error or type(error).__name__}'
            ) from error
        super().__init__(net, _stages(net), net.feature_info.channels(), frozen_stages, norm_cfg, norm_eval, init_cfg)
        same = timm.layers.Conv2dSame, timm.layers.StdConv2dSame, timm.layers.ScaledStdConv2dSame
        self.fixed_padding = not any(isinstance(module, same) for module in net.modules())
        self.channels_last = getattr(net, 'output_fmt', 'NCHW') == 'NHWC'  # swin's maps

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = super().maps(x)
        return tuple(m.permute(0, 3, 1, 2).contiguous() for m in maps) if self.channels_last else maps


def _stages(net: nn.Module) -> list[str]:
    """The module at which each map ends, of those that timm has named so in this network."""
    known, found = dict(net.named_modules()), []
    for info in net.feature_info.info:
        spellings = info['module'], info['module'].replace('.', '_'), f'model.{info["module"]}'
        name = next((spelling for spelling in spellings if spelling in known), None)
        if name is None:  # behind the last map that is returned
            break
        found.append(name)
    return found
