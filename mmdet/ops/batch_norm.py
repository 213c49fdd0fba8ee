"""Kernels of BatchNorm's statistics and gradient; ``mmdet/layers/batch_stats.py`` calls them where they serve.

    y, grad    (N, C) contiguous or (N, C, H, W) channels-last; float32, float64 or bfloat16; on the CPU
    mean, scale, shift, slope    (C,), of y's type, float32 where y is bfloat16

That file runs without them, and its plain torch code says what they compute. For tensors without gradient:

    batch_moments(y) -> mean, biased variance, both (C,)
    batch_norm_sums(grad, y, mean) -> sum of grad, sum of grad (y - mean), both (C,)
    batch_norm_input_grad(grad, y, mean, scale, shift, slope) -> scale (grad - shift - (y - mean) slope), like y

float32 is summed in float64 and bfloat16 in float32. The bits do not depend on the number of threads.

Raises ValueError: another shape, layout or type, or no value to take moments of.
"""

import torch

from mmdet.ops.library import COMPILED


def _channels(y):
    return y.new_empty(y.shape[1], dtype=torch.promote_types(y.dtype, torch.float32))


if COMPILED:

    @torch.library.register_fake('mmdet::batch_moments')
    def _(y):
        return _channels(y), _channels(y)

    @torch.library.register_fake('mmdet::batch_norm_sums')
    def _(grad, y, mean):
        return _channels(y), _channels(y)

    @torch.library.register_fake('mmdet::batch_norm_input_grad')
    def _(grad, y, mean, scale, shift, slope):
        return torch.empty_like(y)
