"""Deformable convolutions: each tap of the kernel reads where another convolution says.

N, C, H, W    images (or RoIs), channels, height, width; H' and W' of the output
K taps of the kernel, D deformable groups (each moves C / D input channels)
"""

import torch
from torch import Tensor, nn

from mmdet.config.errors import UserError
from mmdet.registry import MODELS


@MODELS.register_module('DCN')
class DeformConv2d(nn.Conv2d):
    """Deformable convolution (arXiv 1703.06211, eq. 2): a convolution whose taps move by learned offsets.

    It begins as the plain convolution with its weight, since `conv_offset` begins at 0. `conv_offset` gives 2 D K
    channels: dy and dx of every tap, group after group. Sampling is in float32 at least.

    Args:
        deform_groups: D.

    Raises:
        UserError: D does not divide the input channels.
    """

    values_per_tap = 2

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        deform_groups: int = 1,
    ):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        if deform_groups < 1 or in_channels % deform_groups:
            raise UserError(f'DCN: deform_groups={deform_groups} must divide the {in_channels} input channels')
        taps = deform_groups * self.kernel_size[0] * self.kernel_size[1]
        self.num_offsets = 2 * taps
        self.conv_offset = nn.Conv2d(
            in_channels, self.values_per_tap * taps, self.kernel_size, self.stride, self.padding, self.dilation
        )
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(self.conv_offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H', W')."""
        return self._sample(x, self.conv_offset(x), None)

    def _sample(self, x: Tensor, offsets: Tensor, mask: Tensor | None) -> Tensor:
        """Offsets (N, 2 D K, H', W') in cells of x, mask (N, D K, H', W')."""
        from torchvision.ops import deform_conv2d  # slow to import, and few models need it

        dtype = torch.promote_types(self.weight.dtype, torch.float32)  # an offset in bfloat16 is off by a cell in 256
        inputs = x, offsets, self.weight, self.bias, mask
        x_, offsets, weight, bias, mask = (None if t is None else t.to(dtype) for t in inputs)
        return deform_conv2d(x_, offsets, weight, bias, self.stride, self.padding, self.dilation, mask).to(x.dtype)


@MODELS.register_module('DCNv2')
class ModulatedDeformConv2d(DeformConv2d):
    """Modulated deformable convolution (arXiv 1811.11168, eq. 1): each tap's value is also scaled, by 0 to 1.

    `conv_offset` gives 3 D K channels, the 2 D K offsets of `DeformConv2d` and then the logits of D K scales, which
    begin at 1/2.
    """

    values_per_tap = 3

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H', W')."""
        values = self.conv_offset(x)
        return self._sample(x, values[:, : self.num_offsets], values[:, self.num_offsets :].sigmoid())
