"""Deformable convolution (Dai et al. 2017) for ``conv_cfg``, computed by torchvision."""

from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from mmdet.registry import MODELS


@MODELS.register_module()
class DeformConv(nn.Conv2d):
    """A convolution whose samples move by offsets that another convolution finds; it begins as a plain one.

    Built with nn.Conv2d's arguments, like every ``conv_cfg`` type.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        taps = self.kernel_size[0] * self.kernel_size[1]
        self.offset = nn.Conv2d(
            self.in_channels, 2 * taps, self.kernel_size, self.stride, self.padding, self.dilation
        )  # dy and dx of every tap
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        return deform_conv2d(x, self.offset(x), self.weight, self.bias, self.stride, self.padding, self.dilation)
