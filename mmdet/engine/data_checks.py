"""What model, data sets and metrics must agree on, checked before a run trains or tests anything."""

from collections.abc import Iterator
from typing import Any

from mmcv.transforms import Normalize
from mmengine.runner import Runner
from torch import nn

from mmdet.config.errors import UserError, at_most, say
from mmdet.datasets.pipeline import steps_of


def check_data(runner: Runner, model: nn.Module) -> None:
    """Raise UserError where the run's data sets contradict one another, the model's preprocessor or a metric."""
    train, val, test = (getattr(getattr(loop, 'dataloader', None), 'dataset', None)
                        for loop in (runner._train_loop, runner._val_loop, runner._test_loop))  # fmt: skip
    for name, dataset in dict(train=train, val=val, test=test).items():
        for part in _parts(dataset):
            check_normalisation(model, part, f'{name}_dataloader')
    if train is not None and val is not None:
        check_class_order(_classes(train), _classes(val))
    for loop, dataset in ((runner._val_loop, val), (runner._test_loop, test)):
        for metric in getattr(getattr(loop, 'evaluator', None), 'metrics', ()) if dataset is not None else ():
            if hasattr(metric, 'check_dataset'):
                metric.check_dataset(dataset)


def check_normalisation(model: nn.Module, dataset: Any, place: str) -> None:
    """Raise UserError where a pipeline normalises what the model's preprocessor normalises too."""
    normalises = getattr(getattr(model, 'data_preprocessor', None), 'normalises', False)
    if normalises and any(isinstance(step, Normalize) for step in steps_of(getattr(dataset, 'pipeline', None))):
        raise UserError(f'Normalize in the pipeline of {place}, and mean and std in model.data_preprocessor: images '
                        'would be normalised twice; drop Normalize from the pipeline')


def check_class_order(trained: tuple[str, ...], evaluated: tuple[str, ...]) -> None:
    """Raise UserError where a class has one label in training and another in validation."""
    labels = {name: label for label, name in enumerate(trained)}
    moved = [f'{name!r} is label {labels[name]} in training and {label} in validation'
             for label, name in enumerate(evaluated) if labels.get(name, label) != label]  # fmt: skip
    if moved:
        raise UserError(f'{at_most(moved, 3)}: give train_dataloader and val_dataloader the same '
                        'metainfo=dict(classes=...), in one order')
    unknown = [repr(name) for name in evaluated if trained and name not in labels]
    if unknown:
        say(f'classes {at_most(unknown, 5)} of val_dataloader are not among those of train_dataloader: they count as '
            'the trained classes of the same labels')


def _classes(dataset: Any) -> tuple[str, ...]:
    return tuple((getattr(dataset, 'metainfo', None) or {}).get('classes') or ())


def _parts(dataset: Any) -> Iterator[Any]:
    """The data sets inside ConcatDataset, RepeatDataset and the like."""
    if dataset is None:
        return
    inner = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    if inner == [None]:
        yield dataset
    for part in inner:
        yield from _parts(part)
