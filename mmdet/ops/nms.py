"""Non-maximum suppression: greedy, per class, and soft (arXiv 1704.04503).

B boxes (B, 4) xyxy in pixels. A box is suppressed when its IoU with a kept box of higher score is *above* the
threshold. Boxes of equal score count in the order of their rows, lower row first. NaN boxes and boxes of area 0
overlap nothing. `offset=1` takes sides as x2 - x1 + 1 (checkpoints of mmdetection 0.x).
"""

import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from mmdet.config.errors import UserError
from mmdet.ops.library import COMPILED, exporting, serves

_METHODS = {'naive': 0, 'linear': 1, 'gaussian': 2}


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: float = 0.0) -> Tensor:
    """Greedy NMS of (B, 4) boxes, (B,) scores -> (K,) int64 rows kept, by descending score.

    Raises:
        ValueError: shapes, dtypes or devices do not fit.
    """
    _check('nms', boxes, scores, None)
    return _nms(boxes, scores, None, iou_threshold, offset)


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float, offset: float = 0.0) -> Tensor:
    """NMS among boxes of equal `idxs` (B,), class or level, only -> (K,) int64 rows kept, by descending score.

    Classes are truly separate: no offsets are added to coordinates, which would round them.

    Raises:
        ValueError: shapes, dtypes or devices do not fit.
    """
    _check('batched_nms', boxes, scores, idxs)
    return _nms(boxes, scores, idxs, iou_threshold, offset)


def soft_nms(boxes: Tensor, scores: Tensor, iou_threshold: float = 0.3, sigma: float = 0.5,
             min_score: float = 1e-3, method: str = 'linear', offset: float = 0.0,
             idxs: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Soft-NMS -> (K,) int64 rows kept and their (K,) lowered scores, descending.

    The best box is taken, the scores of the others are multiplied by a factor of their IoU with it, and so on:
    'linear' 1 - IoU where IoU > iou_threshold; 'gaussian' exp(-IoU^2 / sigma); 'naive' 0 where
    IoU > iou_threshold. Boxes below `min_score` are dropped. With `idxs`, classes are separate.

    Raises:
        ValueError: unknown method, sigma not above 0, or shapes, dtypes or devices do not fit.
    """
    _check('soft_nms', boxes, scores, idxs)
    if method not in _METHODS:
        raise ValueError(f'soft_nms: method must be one of {", ".join(_METHODS)}, got {method!r}')
    if not sigma > 0:
        raise ValueError(f'soft_nms: sigma must be above 0, got {sigma}')
    if exporting():
        raise UserError("soft_nms has no counterpart in other runtimes; export with test_cfg's "
                        'nms=dict(type="nms", iou_threshold=0.5)')
    op = torch.ops.mmdet.soft_nms if serves(boxes) else _plain_soft_nms
    return op(boxes, scores, idxs, iou_threshold, sigma, min_score, _METHODS[method], offset)


def apply_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, nms_cfg: Mapping) -> tuple[Tensor, Tensor]:
    """Run the NMS that a config names -> (K,) rows kept and their (K,) scores, descending.

    nms_cfg: dict(type='nms', iou_threshold=0.5) or dict(type='soft_nms', iou_threshold=0.3, sigma=0.5,
    min_score=1e-3, method='linear'); both take offset=0, class_agnostic=False and max_num (at most so many, -1
    for all). `iou_thr` is read as `iou_threshold`; `split_thr` is accepted and has nothing to do here.

    Raises:
        ValueError: unknown type or key, or what the function named raises.

    >>> boxes = torch.tensor([[0., 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 9]])
    >>> apply_nms(boxes, torch.tensor([.9, .8, .7]), torch.tensor([0, 0, 1]), dict(type='nms', iou_threshold=.5))
    (tensor([0, 2]), tensor([0.9000, 0.7000]))
    """
    if nms_cfg is None:
        raise UserError('nms=None is not supported; nms=dict(type="nms", iou_threshold=1.0) keeps every box')
    cfg = dict(nms_cfg)
    kind = cfg.pop('type', 'nms')
    if 'iou_thr' in cfg:
        cfg['iou_threshold'] = cfg.pop('iou_thr')
    cfg.pop('split_thr', None)
    max_num = cfg.pop('max_num', -1)
    groups = None if cfg.pop('class_agnostic', False) else idxs
    allowed = {'nms': {'iou_threshold', 'offset'},
               'soft_nms': {'iou_threshold', 'sigma', 'min_score', 'method', 'offset'}}
    if kind not in allowed:
        raise UserError(f"nms_cfg: type must be 'nms' or 'soft_nms', got {kind!r}")
    unknown = sorted(set(cfg) - allowed[kind])
    if unknown:
        raise UserError(f'nms_cfg: {kind} does not know {", ".join(unknown)}; it takes '
                         f'{", ".join(sorted(allowed[kind]))}, class_agnostic, max_num')
    if kind == 'soft_nms':
        keep, kept_scores = soft_nms(boxes, scores, idxs=groups, **cfg)
    else:
        if 'iou_threshold' not in cfg:
            raise UserError('nms_cfg: iou_threshold is missing, e.g. dict(type="nms", iou_threshold=0.5)')
        keep = nms(boxes, scores, **cfg) if groups is None else batched_nms(boxes, scores, groups, **cfg)
        kept_scores = scores[keep]
    return (keep[:max_num], kept_scores[:max_num]) if max_num >= 0 else (keep, kept_scores)


def _check(name: str, boxes: Tensor, scores: Tensor, idxs: Tensor | None) -> None:
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f'{name}: boxes must be (B, 4) xyxy, got {tuple(boxes.shape)}')
    for label, value in (('scores', scores), ('idxs', idxs)):
        if value is None:
            continue
        if value.dim() != 1 or value.shape[0] != boxes.shape[0]:
            raise ValueError(f'{name}: {label} must be ({boxes.shape[0]},) for {boxes.shape[0]} boxes, '
                             f'got {tuple(value.shape)}')
        if value.device != boxes.device:
            raise ValueError(f'{name}: {label} are on {value.device}, the boxes on {boxes.device}')
    if not (boxes.is_floating_point() and scores.is_floating_point()):
        raise ValueError(f'{name}: boxes and scores must be floating point, got {boxes.dtype} and {scores.dtype}')


def _nms(boxes, scores, idxs, iou_threshold, offset) -> Tensor:
    if serves(boxes):
        return torch.ops.mmdet.nms(boxes, scores, idxs, iou_threshold, offset)
    import torchvision

    boxes = boxes if boxes.dtype == torch.float64 else boxes.float()
    grown = boxes + boxes.new_tensor([0, 0, offset, offset])
    if exporting():
        _let_none_remain()
        grown = grown if idxs is None else _apart(grown, idxs)
        return torchvision.ops.nms(grown, scores.to(boxes.dtype), iou_threshold)
    groups = [None] if idxs is None else idxs.unique()
    keep = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    for group in groups:
        rows = torch.arange(len(boxes), device=boxes.device) if group is None else (idxs == group).nonzero()[:, 0]
        keep[rows[torchvision.ops.nms(grown[rows], scores[rows].to(boxes.dtype), iou_threshold)]] = True
    order = scores.argsort(stable=True, descending=True)
    return order[keep[order]]


@functools.cache
def _let_none_remain() -> None:
    """torchvision tells torch.export that at least two boxes remain, and the graph would refuse an image with fewer.

    Can go when torchvision's kernel for shapes asks for `new_dynamic_size`; 0.29 does not.
    """

    @torch.library.register_fake('torchvision::nms', allow_override=True)
    def _(dets, scores, iou_threshold):
        return dets.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.long)


_COLUMNS = 16


def _apart(boxes: Tensor, idxs: Tensor) -> Tensor:
    """The boxes of each group in a field of its own, on a grid: of 80 classes rounding moves none by 0.001 pixels."""
    corners = torch.cat([boxes.flatten(), boxes.new_zeros(1)])  # there may be none
    side = corners.max() - corners.min() + 1
    place = torch.stack([idxs % _COLUMNS, idxs // _COLUMNS], dim=1).to(boxes.dtype)
    return boxes + (place * side).repeat(1, 2)


def _plain_soft_nms(boxes, scores, idxs, iou_threshold, sigma, min_score, method, offset):
    """Soft-NMS in plain torch, one box at a time."""
    dtype = torch.float64 if boxes.dtype == torch.float64 else torch.float32
    boxes, left = boxes.to(dtype), scores.to(dtype)
    left = torch.where(left >= min_score, left, left.new_tensor(-1.0))
    sides = boxes[:, 2:] - boxes[:, :2] + offset
    area = sides[:, 0] * sides[:, 1]
    keep, kept_scores = [], []
    # of equal scores the lowest row comes first, which argmax does not promise
    place = torch.arange(len(boxes), device=boxes.device)
    while len(boxes) and bool((left >= 0).any()):
        best = place[left == left.max()][0]
        keep.append(best)
        kept_scores.append(left[best].clone())
        corner = torch.maximum(boxes[:, :2], boxes[best, :2])
        size = (torch.minimum(boxes[:, 2:], boxes[best, 2:]) - corner + offset).clamp(min=0)
        inter = size[:, 0] * size[:, 1]
        iou = (inter / (area + area[best] - inter)).nan_to_num(0)
        over = iou > iou_threshold
        factor = {0: (~over).to(dtype), 1: torch.where(over, 1 - iou, 1.0), 2: torch.exp(-iou**2 / sigma)}[method]
        if idxs is not None:
            factor = torch.where(idxs == idxs[best], factor, 1.0)
        left = torch.where(left >= 0, left * factor, left)
        left = torch.where((left >= min_score) & ~((method == 0) & (left == 0)), left, -1.0)
        left[best] = -1
    if not keep:
        return torch.zeros(0, dtype=torch.long, device=boxes.device), scores.new_zeros(0)
    return torch.stack(keep), torch.stack(kept_scores).to(scores.dtype)


if COMPILED:

    @torch.library.register_fake('mmdet::nms')
    def _(boxes, scores, idxs, iou_threshold, offset):
        return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.long)

    @torch.library.register_fake('mmdet::soft_nms')
    def _(boxes, scores, idxs, iou_threshold, sigma, min_score, method, offset):
        count = torch.library.get_ctx().new_dynamic_size()
        return boxes.new_empty(count, dtype=torch.long), scores.new_empty(count)
