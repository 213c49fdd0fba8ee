"""Building and checking the steps of a pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from mmcv import transforms as of_mmcv
from mmcv.transforms import BaseTransform
from mmengine.registry import DefaultScope

from mmdet.config.contracts import described, on_first_call
from mmdet.config.errors import UserError
from mmdet.registry import TRANSFORMS
from mmdet.structures import BitmapMasks, PolygonMasks

# What transforms pass on, as far as it is there: numpy's kinds of its numbers, its axes after the first, and its name.
_ARRAYS = dict(
    gt_bboxes=('f', (4,), 'a numpy array of floats (G, 4)'),
    gt_bboxes_labels=('iu', (), 'a numpy array of integers (G,)'),
    gt_ignore_flags=('b', (), 'a numpy array of bools (G,)'),
    proposals=('f', (4,), 'a numpy array of floats (P, 4)'),
)
# These move pixels and boxes, no masks.
_MMCV_MOVING = (
    of_mmcv.CenterCrop, of_mmcv.Pad, of_mmcv.RandomChoiceResize, of_mmcv.RandomFlip, of_mmcv.RandomResize,
    of_mmcv.Resize,
)  # fmt: skip


def build_steps(steps: Sequence[dict | Any]) -> list[Any]:
    """The transforms of a pipeline. Names are ours first, also where no default scope is set, and inside a
    RandomChoice: mmcv has transforms of the same names."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        built = [TRANSFORMS.build(step) if isinstance(step, dict) else step for step in steps]
    for step in steps_of(built):
        if isinstance(step, BaseTransform):
            on_first_call(step, 'transform', _passed_on, _given)
    return built


def _passed_on(results: Any, *given: Any) -> str | None:
    """What a transform should have left in place of what it did."""
    wrong = _wrong_entry(results)
    return wrong and f'{wrong[1]} in {wrong[0]!r} (it is {described(results[wrong[0]])})'


def _given(results: Any) -> str | None:
    """What a transform needs in the place of what a function before it left."""
    wrong = _wrong_entry(results)
    return wrong and f'{wrong[1]} in {wrong[0]!r}; it is given {described(results[wrong[0]])}'


def _wrong_entry(results: Any) -> tuple[str, str] | None:
    """The first entry of a sample's dict that the next transform cannot take, and what it should be."""
    if not isinstance(results, dict):
        return None
    for key, (kinds, axes, expected) in _ARRAYS.items():
        values = results.get(key)
        if values is not None and not (
            isinstance(values, np.ndarray) and values.dtype.kind in kinds and values.ndim and values.shape[1:] == axes
        ):
            return key, expected
    if not isinstance(results.get('gt_masks'), (BitmapMasks, PolygonMasks, type(None))):
        return 'gt_masks', 'BitmapMasks or PolygonMasks of mmdet.structures'
    return None


def steps_of(pipeline: Any) -> Iterator[Any]:
    """Every single step of a pipeline in order, those inside RandomChoice, RandomApply and the like too."""
    inner = pipeline if isinstance(pipeline, (list, tuple)) else getattr(pipeline, 'transforms', None)
    if isinstance(inner, Iterable):
        for step in inner:
            yield from steps_of(step)
    elif pipeline is not None:
        yield pipeline


def pipelines_of(dataset: Any) -> Iterator[Any]:
    """The pipelines of the data sets inside ConcatDataset, RepeatDataset and the like."""
    if hasattr(dataset, 'pipeline'):
        yield dataset.pipeline
    for part in getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]:
        if part is not None:
            yield from pipelines_of(part)


def moves_pixels(step: Any) -> bool:
    """What a transform says by its class attribute `changes_geometry`; mmcv's say nothing of themselves."""
    return getattr(step, 'changes_geometry', isinstance(step, _MMCV_MOVING))


def check_order(steps: Sequence[Any]) -> None:
    """Raise UserError where a step moves pixels before the boxes and masks on them are loaded, or without the masks.

    A transform says of itself what it does: class attributes `changes_geometry` and `loads_annotations`.
    """
    moving, masks = None, False
    for step in steps_of(steps):
        masks = masks or getattr(step, 'with_mask', False)
        if masks and type(step) in _MMCV_MOVING:
            name = type(step).__name__
            raise UserError(f'mmcv.{name} in the pipeline leaves masks where they are; write dict(type={name!r}), '
                            'which is of mmdet')
        if moves_pixels(step):
            moving = moving or type(step).__name__
        elif moving and getattr(step, 'loads_annotations', False):
            loading = type(step).__name__
            raise UserError(f'{moving} stands before {loading} in the pipeline: boxes and masks would be those of '
                            f'the original image. Put {loading} first; in a data set for evaluation set test_mode=True')


def loaded_boxes(pipeline: Any) -> str | None:
    """Of what image the boxes that a pipeline loads are: 'input', as the last step leaves it, or 'original', where they
    are loaded after the last step that moves pixels; None where none are loaded."""
    frame = None
    for step in steps_of(pipeline):
        if getattr(step, 'loads_annotations', False):
            frame = 'original'
        elif frame and moves_pixels(step):
            frame = 'input'
    return frame


def loads_no_masks(pipeline: Any) -> bool:
    """Whether a pipeline loads annotations and says that it leaves masks out."""
    loading = [step for step in steps_of(pipeline) if getattr(step, 'loads_annotations', False)]
    return bool(loading) and not any(getattr(step, 'with_mask', True) for step in loading)
