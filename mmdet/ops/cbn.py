"""Kernels of Cross-Iteration Batch Normalization's training forward; ``mmdet.layers.cbn`` calls them where they serve.

    C, G, K     output channels; groups of the convolution; weights of one output channel, C_in / G * kh * kw
    S           past batches the window can hold

That file runs without them, and its plain torch code says what they compute. They have CUDA kernels alone, for tensors
without gradient:

    cbn_slopes(x, y, mean, kernel, stride, padding, dilation, groups, every, first)
        -> (G, C / G + 1, K): dvar / dw of each group's channels, then their dmean / dw, from the positions first,
        first + every, ... of y along (N, H, W). x (N, C_in, H, W), y (N, C, OH, OW);
        bfloat16 where y has half precision.
    cbn_window(weight, mean, var, bias, values, dmean, dvar, slopes, running_mean, running_var, tracked, momentum,
               filled, slot, count, rho, root, eps)
        -> mean, var, 1 / sqrt(var + eps) pooled over ``filled`` past batches and this one, all (C,); the number of
        values behind them, (1,) int32; and dmean with the new batch at ``slot``. Its other parts enter ``values``
        (4, C, S) and ``dvar`` (C, S, K), and the running statistics move on, in place. What is None is left out.
"""

import torch

from .library import COMPILED

if COMPILED:

    @torch.library.register_fake('mmdet::cbn_slopes')
    def _(x, y, mean, kernel, stride, padding, dilation, groups, every, first):
        dtype = torch.bfloat16 if y.dtype == torch.float16 else y.dtype
        shape = groups, y.shape[1] // groups + 1, x.shape[1] // groups * kernel[0] * kernel[1]
        return y.new_empty(shape, dtype=dtype)

    @torch.library.register_fake('mmdet::cbn_window')
    def _(weight, mean, var, bias, values, dmean, dvar, slopes, running_mean, running_var, tracked, momentum,
          filled, slot, count, rho, root, eps):
        pooled = (torch.empty_like(mean) for _ in range(3))
        moved = mean.new_empty(0) if slopes is None else torch.empty_like(dmean)
        return *pooled, mean.new_empty(1, dtype=torch.int32), moved
