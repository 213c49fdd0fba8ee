"""Building and checking the steps of a pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from mmengine.registry import DefaultScope

from mmdet.config.errors import UserError
from mmdet.registry import TRANSFORMS


def build_steps(steps: Sequence[dict | Any]) -> list[Any]:
    """The transforms of a pipeline. Names are ours first, also where no default scope is set, and inside a
    RandomChoice: mmcv has transforms of the same names."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        return [TRANSFORMS.build(step) if isinstance(step, dict) else step for step in steps]


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


def check_order(steps: Sequence[Any]) -> None:
    """Raise UserError where a step moves pixels before the boxes and masks on them are loaded.

    A transform says of itself what it does: class attributes `changes_geometry` and `loads_annotations`.
    """
    moving = None
    for step in steps_of(steps):
        if getattr(step, 'changes_geometry', False):
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
        elif frame and getattr(step, 'changes_geometry', False):
            frame = 'input'
    return frame
