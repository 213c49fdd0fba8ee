"""torchvision's ConvNeXt (Liu et al. 2022) as a backbone.

N images, H and W of the input; map s in 0..3 has stride 4 * 2**s.
"""

import torchvision
from torch import Tensor, nn

from mmdet.registry import MODELS


@MODELS.register_module()
class ConvNeXt(nn.Module):
    """The four maps of a ConvNeXt: (N, C_s, H / stride_s, W / stride_s), C_s = 96 * 2**s for `convnext_tiny`.

    Args:
        name: torchvision's builder, 'convnext_tiny' to 'convnext_large'.
        frozen_stages: the stem and the stages up to this one are not trained; -1 freezes nothing.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)``; applied by the detector before training.
    """

    def __init__(self, name: str = 'convnext_tiny', frozen_stages: int = -1, init_cfg: dict | None = None):
        super().__init__()
        self.init_cfg = init_cfg
        features = getattr(torchvision.models, name)(weights=None).features
        self.stem, *rest = features
        # torchvision alternates: stage, downsampling, stage, downsampling, stage, downsampling, stage
        self.stages = nn.ModuleList([rest[0], *(nn.Sequential(*rest[i : i + 2]) for i in (1, 3, 5))])
        if frozen_stages >= 0:
            for part in (self.stem, *self.stages[:frozen_stages]):
                part.requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x, maps = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return tuple(maps)
