"""RoIAlign over one feature map or over a feature pyramid (Mask R-CNN, arXiv 1703.06870, section 3).

N images, C channels, (H, W) a map, L levels, K RoIs, (h, w) bins. Boxes are xyxy in pixels of the input
image; `spatial_scale` takes them to cells of the map.
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from mmdet.ops.library import COMPILED, exporting, serves


def roi_align(input: Tensor, boxes: Tensor | Sequence[Tensor], output_size: int | tuple[int, int],
              spatial_scale: float = 1.0, sampling_ratio: int = -1, aligned: bool = False,
              legacy: bool = False) -> Tensor:
    """Average bilinear samples of `input` (N, C, H, W) in (h, w) bins of each box -> (K, C, h, w).

    `boxes` is (K, 5) of [image, x1, y1, x2, y2] or one (n, 4) tensor per image. `sampling_ratio` samples
    along each side of a bin; 0 or less takes as many as the bin has cells. `aligned` shifts by half a cell, so
    that a cell's value stands at its centre. `legacy` is the rule of mmdetection 0.x checkpoints: boxes reach to
    x2 + 1, no shift, sides down to 0 (`aligned` has no say). Equals torchvision's where both are defined.

    Boxes with NaN or infinite corners give zeros. The result keeps the memory format and dtype of `input`;
    sums are in float32 at least. On CUDA the backward pass is deterministic when torch is told to be.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or a box names an image outside the batch (CPU).
    """
    if input.dim() != 4:
        raise ValueError(f'roi_align: input must be (N, C, H, W), got {tuple(input.shape)}')
    return _roi_align([input], _rows(boxes, input), output_size, [spatial_scale], sampling_ratio, aligned, legacy,
                      0.0)


def multiscale_roi_align(features: Sequence[Tensor], rois: Tensor, output_size: int | tuple[int, int],
                         spatial_scales: Sequence[float], sampling_ratio: int = 0, aligned: bool = True,
                         finest_scale: float = 56.0, legacy: bool = False) -> Tensor:
    """RoIAlign in which each box picks its level: L maps (N, C, H_l, W_l), (K, 5) -> (K, C, h, w).

    Level = floor(log2(sqrt(area) / finest_scale + 1e-6)) clamped to 0..L-1 (FPN, arXiv 1612.03144, equation 1);
    `legacy` measures sides as x2 - x1 + 1 there too. One launch, no synchronisation with the host. See
    `roi_align` for the rest.
    """
    if not features or any(f.dim() != 4 or f.shape[:2] != features[0].shape[:2] for f in features):
        raise ValueError('multiscale_roi_align: features must be (N, C, H_l, W_l) maps with equal N and C, got '
                         f'{[tuple(f.shape) for f in features]}')
    if len(spatial_scales) != len(features):
        raise ValueError(f'multiscale_roi_align: {len(features)} maps but {len(spatial_scales)} spatial scales')
    if not finest_scale > 0:
        raise ValueError(f'multiscale_roi_align: finest_scale must be above 0, got {finest_scale}')
    return _roi_align(list(features), _rows(rois, features[0]), output_size, list(spatial_scales), sampling_ratio,
                      aligned, legacy, finest_scale)


class RoIAlign(nn.Module):
    """`roi_align` as a module; called with a map (N, C, H, W) and boxes."""

    def __init__(self, output_size, spatial_scale: float = 1.0, sampling_ratio: int = -1, aligned: bool = False,
                 legacy: bool = False):
        super().__init__()
        self.output_size = _pair(output_size)
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned
        self.legacy = legacy

    def forward(self, input: Tensor, rois: Tensor | Sequence[Tensor]) -> Tensor:
        return roi_align(input, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned,
                         self.legacy)

    def extra_repr(self) -> str:
        return (f'output_size={self.output_size}, spatial_scale={self.spatial_scale}, '
                f'sampling_ratio={self.sampling_ratio}, aligned={self.aligned}, legacy={self.legacy}')


def _rows(boxes: Tensor | Sequence[Tensor], features: Tensor) -> Tensor:
    """(K, 5) rows [image, x1, y1, x2, y2], checked."""
    if not isinstance(boxes, Tensor):
        if len(boxes) > features.shape[0] or any(b.dim() != 2 or b.shape[1] != 4 for b in boxes):
            raise ValueError(f'roi_align: a list of boxes must hold one (n, 4) tensor for each of the '
                             f'{features.shape[0]} images, got {[tuple(b.shape) for b in boxes]}')
        rows = [torch.cat([b.new_full((len(b), 1), i), b], 1) for i, b in enumerate(boxes)]
        boxes = torch.cat(rows) if rows else features.new_zeros(0, 5)
    if boxes.dim() != 2 or boxes.shape[1] != 5:
        raise ValueError(f'roi_align: boxes must be (K, 5) [image, x1, y1, x2, y2], got {tuple(boxes.shape)}')
    if boxes.device != features.device:
        raise ValueError(f'roi_align: boxes are on {boxes.device}, the features on {features.device}')
    if not (features.is_floating_point() and boxes.is_floating_point()):
        raise ValueError(f'roi_align: features and boxes must be floating point, got {features.dtype} and '
                         f'{boxes.dtype}')
    return boxes


def _roi_align(features: list[Tensor], rois: Tensor, output_size, spatial_scales: list[float], sampling_ratio: int,
               aligned: bool, legacy: bool, finest_scale: float) -> Tensor:
    height, width = _pair(output_size)
    if height <= 0 or width <= 0:
        raise ValueError(f'roi_align: output_size must be positive, got {output_size}')
    if any(f.dtype != features[0].dtype or f.device != features[0].device for f in features):
        raise ValueError('roi_align: all maps must have one dtype and device, got '
                         f'{[(str(f.dtype), str(f.device)) for f in features]}')
    op = torch.ops.mmdet.roi_align if serves(features[0]) else _plain_roi_align
    return op(features, rois, spatial_scales, height, width, sampling_ratio, aligned, legacy, finest_scale)


def map_levels(rois: Tensor, num_levels: int, finest_scale: float, legacy: bool = False) -> Tensor:
    """The level rule of `multiscale_roi_align` in plain torch: (K, 5) -> (K,) int64."""
    sides = rois[:, 3:] - rois[:, 1:3] + float(legacy)
    scale = sides.prod(1).sqrt() / finest_scale + 1e-6
    return torch.log2(scale).floor().nan_to_num(0, num_levels, -1).clamp(0, num_levels - 1).long()


def _plain_roi_align(features, rois, spatial_scales, height, width, sampling_ratio, aligned, legacy, finest_scale):
    """The same by torchvision, level after level."""
    dtype = torch.float64 if features[0].dtype == torch.float64 else torch.float32
    rows = rois.to(dtype)
    known = (rows[:, 0] >= 0) & (rows[:, 0] < features[0].shape[0])
    if rows.device.type == 'cpu' and not exporting() and not known.all():
        raise ValueError(f'roi_align: a box names an image outside a batch of {features[0].shape[0]}')
    valid = known & rows.isfinite().all(1)
    rows = torch.where(valid[:, None], rows, rows.new_tensor([0, 0, 0, 1, 1]))
    levels = map_levels(rows, len(features), finest_scale, legacy) if len(features) > 1 else None
    output = features[0].new_zeros(rows.shape[0], features[0].shape[1], height, width)
    for i, (feature, scale) in enumerate(zip(features, spatial_scales)):
        chosen = rows
        if legacy:  # the half-cell shift of `aligned` undone; also right for boxes thinner than a cell
            shift = 0.5 / scale
            chosen = rows + rows.new_tensor([0, shift, shift, shift + 1, shift + 1])
        inds = slice(None) if levels is None else (levels == i).nonzero().squeeze(1)
        pooled = _torchvision(feature.to(dtype), chosen[inds], (height, width), scale, sampling_ratio,
                              aligned or legacy)
        if levels is None:
            output = pooled.to(output.dtype)
        else:
            output = output.index_put((inds,), pooled.to(output.dtype))
    output = output * valid[:, None, None, None].to(output.dtype)
    return output if exporting() else output.contiguous(memory_format=_memory_format(features[0]))


_SAMPLES = 256  # along a side of a bin: 7,000 pixels of a box at stride 4


def _torchvision(feature: Tensor, rows: Tensor, size: tuple[int, int], scale: float, sampling_ratio: int,
                 aligned: bool) -> Tensor:
    """torchvision's operator without its two accidents: a map without cells is a crash, and a box of 1e30 pixels, whose
    samples it lists beforehand, takes all memory. Such a box is sampled at 64 points along a bin."""
    import torchvision

    if feature.numel() == 0:
        return feature.new_zeros(len(rows), feature.shape[1], *size) + feature.sum()
    pool = functools.partial(torchvision.ops.roi_align, feature, output_size=size, spatial_scale=scale, aligned=aligned)
    if sampling_ratio > 0 or exporting():
        return pool(boxes=rows, sampling_ratio=sampling_ratio)
    bins = (rows[:, 3:] - rows[:, 1:3]) * scale / rows.new_tensor([size[1], size[0]])
    wide = bins.amax(1) > _SAMPLES
    if not wide.any():
        return pool(boxes=rows, sampling_ratio=sampling_ratio)
    usual, few = pool(boxes=rows[~wide], sampling_ratio=sampling_ratio), pool(boxes=rows[wide], sampling_ratio=64)
    output = few.new_zeros(len(rows), *few.shape[1:])
    return output.index_put((~wide,), usual).index_put((wide,), few)


if COMPILED:

    @torch.library.register_fake('mmdet::roi_align')
    def _(features, rois, spatial_scales, height, width, sampling_ratio, aligned, legacy, finest_scale):
        first = features[0]
        size = (rois.shape[0], first.shape[1], height, width)
        return torch.empty(size, dtype=first.dtype, device=first.device, memory_format=_memory_format(first))

    @torch.library.register_fake('mmdet::roi_align_backward')
    def _(grad, rois, shapes, spatial_scales, sampling_ratio, aligned, legacy, finest_scale, channels_last):
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        return [torch.empty(shapes[i:i + 4], dtype=grad.dtype, device=grad.device, memory_format=memory_format)
                for i in range(0, len(shapes), 4)]

    def _setup_context(ctx, inputs, output):
        features, rois, *ctx.rest = inputs
        ctx.save_for_backward(rois)
        ctx.shapes = [size for f in features for size in f.shape]
        ctx.channels_last = _memory_format(features[0]) == torch.channels_last

    def _backward(ctx, grad):
        scales, height, width, *rule = ctx.rest
        grads = torch.ops.mmdet.roi_align_backward(grad, ctx.saved_tensors[0], ctx.shapes, scales, *rule,
                                                   ctx.channels_last)
        return grads, *[None] * 8

    torch.library.register_autograd('mmdet::roi_align', _backward, setup_context=_setup_context)

    def _setup_double(ctx, inputs, output):
        grad, rois, shapes, *ctx.rest = inputs
        ctx.size = grad.shape[2:]
        ctx.save_for_backward(rois)

    def _double_backward(ctx, grads):  # pooling is linear in the maps, so this is pooling again
        scales, *rule, _ = ctx.rest
        pooled = torch.ops.mmdet.roi_align(grads, ctx.saved_tensors[0], scales, *ctx.size, *rule)
        return pooled, *[None] * 8

    torch.library.register_autograd('mmdet::roi_align_backward', _double_backward, setup_context=_setup_double)


def _memory_format(tensor: Tensor) -> torch.memory_format:
    """channels_last when the strides say so and nothing else, as in torch's own ops."""
    last = tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


