"""SSD's backbone.

N images, H and W of the input.
"""

from torch import Tensor, nn

from mmdet.config.errors import UserError
from mmdet.layers import init_conv
from mmdet.models.initialize import BaseModule
from mmdet.registry import MODELS

_CONVS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}  # of each stage
_CHANNELS = (64, 128, 256, 512, 512)
_LAST = 1024


@MODELS.register_module()
class SSDVGG(BaseModule):
    """VGG without its classifier, whose first two layers are convolutions, the first of them dilated (arXiv 1512.02325,
    section 3).

    Layers count from 0 as in torchvision's VGG: of VGG-16 22 is the ReLU of conv4_3, 34 the last one of all.

    Args:
        depth: 11, 13, 16 or 19.
        with_last_pool: keep the pooling of stride 2 behind the fifth stage, before SSD's own of stride 1.
        ceil_mode: round the size of a pooled map up: 75 -> 38.
        out_indices: mmdetection's, without effect.
        out_feature_indices: layers whose outputs are returned.
        init_cfg: see `mmdet.models.initialize`. A file of a VGG classifier fills the five stages.

    Raises:
        UserError: a depth or a layer that does not exist.
    """

    def __init__(
        self,
        depth: int = 16,
        with_last_pool: bool = False,
        ceil_mode: bool = True,
        out_indices: tuple[int, ...] = (3, 4),
        out_feature_indices: tuple[int, ...] = (22, 34),
        init_cfg: dict | list[dict] | None = None,
    ):
        super().__init__(init_cfg)
        if depth not in _CONVS:
            raise UserError(f'SSDVGG: depth={depth} is none of {", ".join(map(str, _CONVS))}')
        stages = _stages(_CONVS[depth], ceil_mode)
        if not with_last_pool:
            stages.pop()
        self.num_vgg_layers = len(stages)
        self.features = nn.Sequential(
            *stages,
            nn.MaxPool2d(3, stride=1, padding=1),
            nn.Conv2d(_CHANNELS[-1], _LAST, 3, padding=6, dilation=6),
            nn.ReLU(),
            nn.Conv2d(_LAST, _LAST, 1),
            nn.ReLU(),
        )
        if not all(0 <= index < len(self.features) for index in out_feature_indices):
            raise UserError(
                f'SSDVGG: out_feature_indices={tuple(out_feature_indices)} are not among the {len(self.features)} '
                f'layers of depth {depth}, counted from 0'
            )
        self.out_feature_indices = tuple(out_feature_indices)
        for layer in self.features:
            init_conv(layer)

    @property
    def out_channels(self) -> list[int]:
        """Channels of each map returned."""
        convs = [[m for m in self.features[: i + 1] if isinstance(m, nn.Conv2d)] for i in self.out_feature_indices]
        return [before[-1].out_channels for before in convs]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images (N, 3, H, W) -> the maps of `out_feature_indices`: (N, 512, H / 8, ...) and (N, 1024, H / 16, ...)."""
        maps = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.out_feature_indices:
                maps.append(x)
        return tuple(maps)

    def own_names(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """All weights of this backbone, where `weights` are those of a VGG classifier.

        The door of checkpoints asks for it. What follows the five stages keeps its initial values.
        """
        own = self.state_dict()
        stages = {key for key in own if int(key.split('.')[1]) < self.num_vgg_layers}
        return {key: weights.get(key, value) for key, value in own.items()} if stages <= weights.keys() else {}


def _stages(convs: tuple[int, ...], ceil_mode: bool) -> list[nn.Module]:
    """The five stages of VGG, each ending with its pooling."""
    layers, channels = [], 3
    for count, width in zip(convs, _CHANNELS):
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2, stride=2, ceil_mode=ceil_mode))
    return layers
