"""Kernels of Cross-Iteration Batch Normalization's training forward, called by ``mmdet/layers/cbn/kernels.py``.

    C, G, K     output channels; groups of the convolution; weights of one output channel, C_in / G * kh * kw
    S           past batches the history can hold

``layers/cbn`` runs without them, and its plain torch code says what they compute. They have CUDA kernels alone, for
tensors without gradient:

    cbn_derivatives(x, y, mean, kernel, stride, padding, dilation, groups, step, start)
        -> (G, C / G + 1, K): dvar / dw of each group's channels, then their dmean / dw, from the positions start,
        start + step, ... of y along (N, H, W). x (N, C_in, H, W), y (N, C, OH, OW);
        bfloat16 where y has half precision.
    cbn_pool(weight, mean, var, bias, values, dmean, dvar, derivatives, running_mean, running_var, tracked, momentum,
             filled, slot, count, rho, root, full_gradient, eps)
        -> mean, var, 1 / sqrt(var + eps) pooled over ``filled`` past batches and this one, all (C,); the number of
        values behind them, (1,) int32; dmean with the new batch at ``slot``; and, if ``full_gradient``, the derivatives
        of mean (G, K) and var (C, K) with respect to the weight by the past batches. The new batch's other parts enter
        ``values`` (4, C, S) and ``dvar`` (C, S, K), and the running statistics move on, in place. What is None is
        left out.

A whole training forward with its gradient is

    cbn_train(y, weight, bias, gamma, beta, x, sample, kernel, stride, padding, dilation, groups, step, start,
              rows, columns, values, dmean, dvar, running_mean, running_var, tracked, momentum, filled, slot,
              enters, rho, root, full_gradient, eps)
        -> y normalised; mean of this batch; pooled mean and var; dmean with the new batch.

It takes this batch's statistics, finds their derivatives from x and ``sample`` (y, or some positions of it: by
``cbn_derivatives`` where ``step`` and ``start`` are given, else from all, with the 0/1 matrices of ``kernel_offsets``
for kernels that have more than one), calls ``cbn_pool``, and normalises. Its gradient reaches y, gamma, beta and, if
``full_gradient``, weight.
"""

import torch

from mmdet.ops.library import COMPILED

if COMPILED:

    @torch.library.register_fake('mmdet::cbn_derivatives')
    def _(x, y, mean, kernel, stride, padding, dilation, groups, step, start):
        dtype = torch.bfloat16 if y.dtype == torch.float16 else y.dtype
        shape = groups, y.shape[1] // groups + 1, x.shape[1] // groups * kernel[0] * kernel[1]
        return y.new_empty(shape, dtype=dtype)

    @torch.library.register_fake('mmdet::cbn_pool')
    def _(weight, mean, var, bias, values, dmean, dvar, derivatives, running_mean, running_var, tracked, momentum,
          filled, slot, count, rho, root, full_gradient, eps):
        pooled = (torch.empty_like(mean) for _ in range(3))
        groups, size, width = (1, 0, 0) if dmean is None else dmean.shape
        moved = mean.new_empty(groups, 0 if derivatives is None else size, width)
        width = width if full_gradient and filled else 0
        found = mean.new_empty(groups, width), mean.new_empty(len(mean), width)
        return *pooled, mean.new_empty(1, dtype=torch.int32), moved, *found
