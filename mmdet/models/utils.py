"""mmdetection 3's `mmdet.models.utils`, for heads that were written for it; nothing of this project uses it."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from mmengine.structures import InstanceData

from mmdet.config.absent import absent
from mmdet.structures import DetDataSample


def multi_apply(func: Callable, *args: Sequence, **options) -> tuple[list, ...]:
    """`func` of each row of the arguments; the lists of its first results, of its second, and so on."""
    return tuple(map(list, zip(*map(partial(func, **options), *args))))


def unpack_gt_instances(batch_data_samples: Sequence[DetDataSample]) -> tuple[list, list, list]:
    """Ground truth, ignored instances (None where there are none) and metainfo of each image."""
    return (
        [sample.gt_instances for sample in batch_data_samples],
        [sample.get('ignored_instances') for sample in batch_data_samples],
        [sample.metainfo for sample in batch_data_samples],
    )


def empty_instances(metas: Sequence[dict], device: str) -> list[InstanceData]:
    """No detections, for each image."""
    import torch

    shapes = dict(bboxes=((0, 4), torch.float32), scores=((0,), torch.float32), labels=((0,), torch.int64))
    zeros = {name: torch.zeros(shape, dtype=dtype, device=device) for name, (shape, dtype) in shapes.items()}
    return [InstanceData(**zeros) for _ in metas]


def mask2ndarray(mask: object) -> np.ndarray:
    """Masks of any form as an array (n, h, w)."""
    if hasattr(mask, 'to_ndarray'):
        return mask.to_ndarray()
    return np.asarray(mask.detach().cpu() if hasattr(mask, 'detach') else mask)


def rename_loss_dict(prefix: str, losses: dict) -> dict:
    """The losses, under names that begin so."""
    return {f'{prefix}{name}': loss for name, loss in losses.items()}


def reweight_loss_dict(losses: dict, weight: float) -> dict:
    """The values with 'loss' in their name, or each of their list, times `weight`; the others as they are."""

    def times(loss):
        return [part * weight for part in loss] if isinstance(loss, (list, tuple)) else loss * weight

    return {name: times(loss) if 'loss' in name else loss for name, loss in losses.items()}


_FLAT = 'the levels are flattened once, see mmdet.models.dense_heads.common'
__path__: list[str] = []  # modules below it: see mmdet.moved
__getattr__ = absent(
    __name__,
    images_to_levels=_FLAT,
    select_single_mlvl=_FLAT,
    levels_to_images=_FLAT,
    filter_scores_and_topk=_FLAT,
    unmap='anchors outside the image are left out by index, nothing is mapped back',
    samplelist_boxtype2tensor='boxes are tensors already; leave the call out',
    unfold_wo_center='semi-supervised and instance-only detectors are not here',
    gaussian_radius='CenterNet is not here',
)
