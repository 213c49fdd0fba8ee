"""What a model predicts on one image, as metrics read it."""

from typing import Any

import numpy as np
import torch

from mmdet.config.contracts import described
from mmdet.config.errors import UserError
from mmdet.structures.masks import compressed_rle, encode_bitmap, rle_areas


def needed_predictions(data_batch: Any, data_samples: Any) -> str | None:
    """Of a metric's first `process`: what it needs, and was not given."""
    for sample in data_samples:
        found = sample.get('pred_instances')
        if found is None or any(key not in found for key in ('bboxes', 'scores', 'labels')):
            return ("samples with pred_instances of bboxes (D, 4), scores (D,) and labels (D,), from the model's "
                    f'predict; it is given {described(sample if found is None else found)}')
    return None


def checked_predictions(sample: Any, num_classes: int, mask_size: tuple[int, int] | None = None) -> dict:
    """The ``img_id`` and ``pred_instances`` of a data sample, or of its dict.

    Returns:
        dict of img_id, bboxes (D, 4) xyxy pixels and scores (D,) float64, labels (D,) int64 and, with `mask_size`
        (h, w), masks: D compressed RLEs, made of RLEs of any form or of bitmaps.

    Raises:
        UserError: labels beyond the classes, or boxes or scores that are not finite.
        ValueError: lengths or shapes that do not fit one another, labels that are no whole numbers, or a mask that is
            damaged, of another size or no bitmap.
    """
    img_id, pred = sample.get('img_id'), sample.get('pred_instances')
    bboxes, scores = (_array(pred[key], torch.float64) for key in ('bboxes', 'scores'))
    labels, masks = _array(pred['labels'], torch.float64), pred['masks'] if mask_size else ()
    count = scores.size
    bboxes = bboxes if bboxes.size else bboxes.reshape(0, 4)
    shapes = dict(bboxes=bboxes.shape, scores=scores.shape, labels=labels.shape)
    needed = dict(bboxes=(count, 4), scores=(count,), labels=(count,))
    if mask_size:
        shapes['masks'], needed['masks'] = (len(masks),), (count,)
    if shapes != needed:
        raise ValueError(f'predictions on image {img_id!r} do not fit one another: their shapes are {shapes}, with as '
                         f'many scores {needed} are needed')
    if not (np.isfinite(bboxes).all() and np.isfinite(scores).all()):
        raise UserError(f'the model predicts boxes or scores that are not finite on image {img_id!r}: its training has '
                        'diverged (use a lower learning rate), or its weights are damaged')
    whole = np.rint(labels) == labels
    if not whole.all():
        raise ValueError(f'predictions on image {img_id!r} have labels that are no whole numbers, such as '
                         f'{labels[~whole][0]:g}')
    labels = labels.astype(np.int64)
    if count and not 0 <= labels.min() <= labels.max() < num_classes:
        wrong = labels.max() if labels.max() >= num_classes else labels.min()
        raise UserError(f'the model predicts label {wrong} on image {img_id!r}, but the data set has {num_classes} '
                        f'classes (0 to {num_classes - 1}); make num_classes of the heads and metainfo.classes of the '
                        'data set agree')
    result = dict(img_id=img_id, bboxes=bboxes, scores=scores, labels=labels)
    if mask_size:
        try:
            rles = (mask if isinstance(mask, dict) else encode_bitmap(mask) for mask in masks)
            result['masks'] = [compressed_rle(rle, *mask_size) for rle in rles]
            rle_areas(result['masks'])
        except ValueError as error:
            raise ValueError(f'a predicted mask on image {img_id!r}: {error}') from None
    return result


def _array(values: Any, dtype: torch.dtype) -> np.ndarray:
    return torch.as_tensor(values).detach().to('cpu', dtype).numpy()
