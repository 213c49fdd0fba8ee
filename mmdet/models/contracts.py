"""What detectors and heads count on in the parts they are built from, looked at once (see `mmdet.config.contracts`).

Each of these gets what a part returns, then what it was given, and says what is expected, or None where that came.

N images, L levels, M anchors of an image, B boxes of an image, R RoIs, S samples, C classes (C itself is the
background).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmdet.config.contracts import described
from mmdet.structures import DetDataSample


def is_tensor(value: Any, *shape: int | None, dtype: torch.dtype | None = None) -> bool:
    """A tensor of this shape, where None stands for any size; without a `dtype` one of floats."""
    if not isinstance(value, Tensor) or value.dim() != len(shape):
        return False
    fits = value.is_floating_point() if dtype is None else value.dtype == dtype
    return fits and all(wanted in (None, size) for wanted, size in zip(shape, value.shape))


def is_several(value: Any, count: int | None = None) -> bool:
    return isinstance(value, (tuple, list)) and count in (None, len(value))


def maps(result: Any, *given: Any, count: int | None = None, of: str = '') -> str | None:
    """Of a backbone or a neck."""
    if is_several(result, count) and all(is_tensor(x, None, None, None, None) for x in result):
        return None
    return f'a tuple of {"" if count is None else f"{count} "}maps (N, C, H, W), fine to coarse{of},'


def losses(result: Any, *given: Any, **named: Any) -> str | None:
    """Of a head or a detector."""
    if isinstance(result, dict) and all(
        isinstance(value, Tensor) or is_several(value) and all(isinstance(v, Tensor) for v in value)
        for value in result.values()
    ):
        return None
    return 'a dict of tensors by the names of the losses'


def loss(result: Any, *given: Any, **named: Any) -> str | None:
    return None if isinstance(result, Tensor) and result.is_floating_point() else 'a float tensor'


def object_loss(result: Any, logits: Tensor, labels: Tensor, *given: Any, **named: Any) -> str | None:
    """Of an RPN: a loss that takes 1 for an object pushes the logits the wrong way."""
    if loss(result) or not (result.requires_grad and logits.requires_grad):
        return loss(result)
    (slope,) = torch.autograd.grad(result.sum(), logits, retain_graph=True)
    objects, background = (slope[:, 0][labels == label].sum().item() for label in (0, 1))
    if objects > 0 and background < 0:
        return 'a loss that falls where labels (S,) are 0 for objects and 1 for the background'
    return None


def assigned(result: Any, boxes: Tensor, *given: Any) -> str | None:
    """Of an assigner, see `task_modules.protocols`."""
    count = len(boxes)
    if is_several(result, 2) and is_tensor(result[0], count, dtype=torch.int64) and is_tensor(result[1], count):
        return None
    return f'the index of the ground truth, int64 ({count},), and the IoU ({count},) of {count} boxes'


def sampled(result: Any, *given: Any) -> str | None:
    """Of a sampler, see `task_modules.protocols`."""
    if is_several(result, 2) and all(is_tensor(rows, None, dtype=torch.int64) for rows in result):
        return None
    return 'the indices of positives and of negatives, two int64 tensors (P,) and (Q,),'


def proposed(result: Any, features: Sequence[Tensor]) -> str | None:
    """Of an RPN's `forward`."""
    images = len(features[0])
    if is_several(result, 3) and is_tensor(result[0], images, None) and is_several(result[2]):
        count = sum(len(level) for level in result[2])
        fits = is_tensor(result[0], images, count) and is_tensor(result[1], images, count, 4)
        if fits and all(is_tensor(level, None, 4) for level in result[2]):
            return None
    return (f'logits ({images}, M) and deltas ({images}, M, 4) of all M anchors of {len(features)} levels, and a list '
            'of the anchors (m, 4) of each level')


def pooled(result: Any, features: Sequence[Tensor], rois: Tensor) -> str | None:
    """Of a RoI extractor."""
    return None if is_tensor(result, len(rois), None, None, None) else f'RoI features ({len(rois)}, channels, S, S)'


def classified(result: Any, rois: Tensor, num_classes: int) -> str | None:
    """Of a box head; an output may be None."""
    count = len(rois)
    if is_several(result, 2):
        logits, deltas = result
        fits = logits is None or is_tensor(logits, count, num_classes + 1)
        if fits and (deltas is None or any(is_tensor(deltas, count, c, 4) for c in (1, num_classes))):
            return None
    return f'logits ({count}, {num_classes + 1}) and deltas ({count}, {num_classes} or 1, 4) of {count} RoIs'


def masked(result: Any, rois: Tensor, num_classes: int, size: int | None) -> str | None:
    """Of a mask head; `size` is that of the targets in training."""
    if any(is_tensor(result, len(rois), c, size, size) for c in (1, num_classes)):
        return None
    size = size or 'S'
    return f'logits ({len(rois)}, {num_classes} or 1, {size}, {size}) of {len(rois)} RoIs'


def detections(result: Any, *given: Any, **named: Any) -> str | None:
    """Of a head that predicts: `mmdet.models.detections.Detections` of each image."""
    if is_several(result) and all(is_several(found, 3) and is_tensor(found[0], None, 4) for found in result):
        return None
    return 'a list of mmdet.models.detections.Detections, boxes (D, 4), scores (D,) and labels (D,) of each image,'


def proposals(result: Any, *given: Any, **named: Any) -> str | None:
    """Of an RPN that predicts."""
    if is_several(result) and all(is_several(found, 2) and is_tensor(found[0], None, 4) for found in result):
        return None
    return 'a list of the boxes (P, 4) and scores (P,) of each image'


def annotated(inputs: Tensor, data_samples: Sequence[DetDataSample]) -> str | None:
    """What a detector is trained on."""
    for sample in data_samples or [None]:
        instances = getattr(sample, 'gt_instances', None)
        if instances is None or any(name not in instances for name in ('bboxes', 'labels')):
            return ('data samples with gt_instances of bboxes and labels, as LoadAnnotations and PackDetInputs make '
                    f'them; it is given {described(sample if instances is None else instances)}')
        boxes, labels = instances.bboxes, instances.labels
        if not is_tensor(boxes, None, 4, dtype=torch.float32) or not is_tensor(labels, len(boxes), dtype=torch.int64):
            return ('gt_instances with float32 bboxes (G, 4) and int64 labels (G,); the pipeline gives '
                    f'{described(boxes)} and {described(labels)}')
    return None
