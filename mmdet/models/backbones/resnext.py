"""ResNeXt backbones; the shape letters are ResNet's."""

from mmdet.models.backbones.resnet import ResNet
from mmdet.registry import MODELS


@MODELS.register_module()
class ResNeXt(ResNet):
    """ResNeXt (Xie et al. 2016): bottlenecks whose 3x3 convolution has `groups` groups of `base_width` channels."""

    def __init__(self, depth: int, groups: int = 32, base_width: int = 4, **kwargs):
        super().__init__(depth, groups=groups, base_width=base_width, **kwargs)
