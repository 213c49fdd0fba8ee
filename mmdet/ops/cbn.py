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
               filled, slot, count, rho, root, follow, eps)
        -> mean, var, 1 / sqrt(var + eps) pooled over ``filled`` past batches and this one, all (C,); the number of
        values behind them, (1,) int32; dmean with the new batch at ``slot``; and, if ``follow``, the derivatives of
        mean (G, K) and var (C, K) with respect to the weight by the past batches. The new batch's other parts enter
        ``values`` (4, C, S) and ``dvar`` (C, S, K), and the running statistics move on, in place. What is None is
        left out.

A whole training forward with its gradient is

    cbn_train(y, weight, bias, gamma, beta, x, sample, kernel, stride, padding, dilation, groups, every, first,
              vertical, horizontal, values, dmean, dvar, running_mean, running_var, tracked, momentum, filled, slot,
              enters, rho, root, follow, eps)
        -> y normalised; mean of this batch; pooled mean, var, 1 / sqrt(var + eps); number of values; dmean.

It takes this batch's statistics, finds their derivatives from x and ``sample`` (y, or some positions of it: by
``cbn_slopes`` where ``every`` and ``first`` are given, else from all, with the 0/1 matrices of ``_taps`` for kernels
that have more than one), calls ``cbn_window``, and normalises. Its gradient reaches y, gamma, beta and, if ``follow``,
weight.
"""

import torch

from mmdet.ops.library import COMPILED

if COMPILED:

    @torch.library.register_fake('mmdet::cbn_slopes')
    def _(x, y, mean, kernel, stride, padding, dilation, groups, every, first):
        dtype = torch.bfloat16 if y.dtype == torch.float16 else y.dtype
        shape = groups, y.shape[1] // groups + 1, x.shape[1] // groups * kernel[0] * kernel[1]
        return y.new_empty(shape, dtype=dtype)

    @torch.library.register_fake('mmdet::cbn_window')
    def _(weight, mean, var, bias, values, dmean, dvar, slopes, running_mean, running_var, tracked, momentum,
          filled, slot, count, rho, root, follow, eps):
        pooled = (torch.empty_like(mean) for _ in range(3))
        groups, size, width = (1, 0, 0) if dmean is None else dmean.shape
        moved = mean.new_empty(groups, 0 if slopes is None else size, width)
        width = width if follow and filled else 0
        derivatives = mean.new_empty(groups, width), mean.new_empty(len(mean), width)
        return *pooled, mean.new_empty(1, dtype=torch.int32), moved, *derivatives
