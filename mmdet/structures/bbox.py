"""mmdetection 3's `mmdet.structures.bbox`, for code that was written for it; ours are in `mmdet.structures.boxes`.

Boxes are plain tensors (n, 4), xyxy in pixels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmdet.config.absent import absent
from mmdet.config.contracts import described
from mmdet.config.errors import UserError
from mmdet.structures.boxes import box_area, box_iof, box_iou
from mmdet.structures.boxes import scale_boxes as _scale

__all__ = [
    'bbox2roi', 'bbox_cxcywh_to_xyxy', 'bbox_overlaps', 'bbox_xyxy_to_cxcywh', 'cat_boxes', 'get_box_tensor',
    'get_box_wh', 'roi2bbox', 'scale_boxes',
]  # fmt: skip


def _tensors(name: str, *boxes: Tensor) -> None:
    """Arrays are of mmdetection's functions for evaluation, which are not here."""
    for some in boxes:
        if not isinstance(some, Tensor):
            raise UserError(f'{name} is given {described(some)} and takes tensors: torch.as_tensor(boxes)')


def bbox2roi(bbox_list: Sequence[Tensor]) -> Tensor:
    """Boxes (n_i, 4) of each image -> (sum n_i, 5), the image's index first."""
    _tensors('bbox2roi', *bbox_list)
    return torch.cat([torch.cat([b.new_full((len(b), 1), i), b[:, :4]], dim=1) for i, b in enumerate(bbox_list)])


def roi2bbox(rois: Tensor) -> list[Tensor]:
    """The reverse of `bbox2roi`, for the images that have a box."""
    return [rois[rois[:, 0] == index, 1:] for index in rois[:, 0].unique()]


def bbox_overlaps(
    bboxes1: Tensor, bboxes2: Tensor, mode: str = 'iou', is_aligned: bool = False, eps: float = 1e-6
) -> Tensor:
    """Overlap 'iou', 'iof' (over the area of `bboxes1`) or 'giou': (N, M) of all pairs, or (N,) of rows.

    >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 5, 10]])
    >>> bbox_overlaps(boxes, boxes), bbox_overlaps(boxes, boxes.flip(0), is_aligned=True)
    (tensor([[1.0000, 0.5000],
            [0.5000, 1.0000]]), tensor([0.5000, 0.5000]))
    """
    _tensors('bbox_overlaps', bboxes1, bboxes2)
    measures = dict(iou=box_iou, iof=box_iof, giou=_giou)
    if mode not in measures:
        raise UserError(f"bbox_overlaps: mode={mode!r} is none of 'iou', 'iof', 'giou'")
    if not is_aligned:
        return measures[mode](bboxes1, bboxes2)
    if len(bboxes1) != len(bboxes2):
        raise UserError(f'bbox_overlaps(is_aligned=True): {len(bboxes1)} boxes against {len(bboxes2)}')
    low, high = torch.maximum(bboxes1[:, :2], bboxes2[:, :2]), torch.minimum(bboxes1[:, 2:], bboxes2[:, 2:])
    inter = box_area(torch.cat([low, torch.maximum(low, high)], dim=1))
    areas = box_area(bboxes1), box_area(bboxes2)
    union = areas[0] if mode == 'iof' else areas[0] + areas[1] - inter
    overlap = inter / union.clamp(min=eps)
    if mode != 'giou':
        return overlap
    hull = torch.cat([torch.minimum(bboxes1[:, :2], bboxes2[:, :2]), torch.maximum(bboxes1[:, 2:], bboxes2[:, 2:])], 1)
    hull = box_area(hull).clamp(min=eps)
    return overlap - (hull - union) / hull


def bbox_xyxy_to_cxcywh(bbox: Tensor) -> Tensor:
    """(..., 4) corners -> centre, width and height."""
    _tensors('bbox_xyxy_to_cxcywh', bbox)
    low, high = bbox[..., :2], bbox[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def bbox_cxcywh_to_xyxy(bbox: Tensor) -> Tensor:
    """(..., 4) centre, width and height -> corners."""
    _tensors('bbox_cxcywh_to_xyxy', bbox)
    centre, half = bbox[..., :2], bbox[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def get_box_tensor(boxes: Tensor) -> Tensor:
    """The boxes, which are a tensor already."""
    return boxes


def cat_boxes(data_list: Sequence[Tensor], dim: int = 0) -> Tensor:
    return torch.cat(list(data_list), dim=dim)


def scale_boxes(boxes: Tensor, scale_factor: tuple[float, float]) -> Tensor:
    return _scale(boxes, scale_factor)


def get_box_wh(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Widths and heights (...,)."""
    return boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]


_PLAIN = 'boxes are plain tensors (n, 4), xyxy in pixels, in data samples, targets and heads; use the tensor itself'


class BaseBoxes:
    """For ``isinstance(boxes, BaseBoxes)`` alone: nothing is one."""

    def __init__(self, *args, **kwargs) -> None:
        raise UserError(_PLAIN)


__path__: list[str] = []  # modules below it: see mmdet.moved
__getattr__ = absent(
    __name__,
    **dict.fromkeys(('HorizontalBoxes', 'autocast_box_type', 'convert_box_type', 'get_box_type',
                     'register_box', 'register_box_converter'), _PLAIN),
    bbox2distance='encode with a box coder; see mmdet.models.task_modules',
    distance2bbox='decode with a box coder; see mmdet.models.task_modules',
)  # fmt: skip


def _giou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    from torchvision.ops import generalized_box_iou  # torchvision takes half a second to import

    return generalized_box_iou(boxes1, boxes2)
