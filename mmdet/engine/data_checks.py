"""What model, data sets and metrics must agree on, checked before a run trains or tests anything."""

from collections.abc import Iterator
from typing import Any

from mmcv.transforms import Normalize
from mmengine.dataset import BaseDataset
from mmengine.dist import get_world_size
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from mmdet.config.contracts import on_first_call
from mmdet.config.errors import UserError, at_most, say
from mmdet.config.values import predicted_fields
from mmdet.datasets.pipeline import loaded_boxes, loads_no_masks, steps_of


def check_data(runner: Runner, model: nn.Module) -> None:
    """Raise UserError where the run's data sets contradict one another, the model's preprocessor or a metric."""
    train, val, test = (getattr(getattr(loop, 'dataloader', None), 'dataset', None)
                        for loop in (runner._train_loop, runner._val_loop, runner._test_loop))  # fmt: skip
    for name, loop in dict(train=runner._train_loop, val=runner._val_loop, test=runner._test_loop).items():
        check_length(getattr(loop, 'dataloader', None), name)
    for dataset in (train, val, test):
        check_classes(model, dataset)
    for name, dataset in dict(train=train, val=val, test=test).items():
        for part in parts_of(dataset):
            check_normalisation(model, part, f'{name}_dataloader')
    if 'masks' in (predicted_fields(runner.cfg.get('model') or {}) or ()):
        for part in parts_of(train):
            check_masks(part)
    if train is not None and val is not None:
        check_class_order(tuple(classes_of(train) or ()), tuple(classes_of(val) or ()))
    for loop, dataset in ((runner._val_loop, val), (runner._test_loop, test)):
        evaluator = getattr(loop, 'evaluator', None)
        for metric, own in evaluated_data(evaluator, dataset) if evaluator and dataset is not None else ():
            check_annotations(metric, own)
            on_first_call(metric, 'process')  # an error in it says what it was given
            if hasattr(metric, 'check_dataset'):
                metric.check_dataset(own)
            most = (getattr(model, 'final_test_cfg', None) or {}).get('max_per_img', -1)
            if most > 0 and hasattr(getattr(metric, 'truth', None), 'say_if_more_than_found'):
                metric.truth.say_if_more_than_found(most)


def evaluated_data(evaluator: Any, dataset: Any) -> Iterator[tuple[Any, Any]]:
    """Each metric, and the data set, or the part of it, that it evaluates."""
    parts = evaluator.parts(dataset) if hasattr(evaluator, 'parts') else {}
    for metric in evaluator.metrics:
        yield metric, parts.get(metric, dataset)


def check_annotations(metric: Any, dataset: Any) -> None:
    """Raise UserError where a metric counts annotations that the pipeline does not load, or moves after it has."""
    if not getattr(metric, 'counts_loaded_annotations', False):
        return
    for part in parts_of(dataset):
        frame = loaded_boxes(getattr(part, 'pipeline', None))
        if frame != 'original' and isinstance(part, BaseDataset):
            wrong = 'has no LoadAnnotations' if frame is None else 'moves pixels after LoadAnnotations'
            raise UserError(f'{type(metric).__name__} compares with boxes of the original images, but the pipeline of '
                            f"the data set {wrong}: put dict(type='LoadAnnotations', with_bbox=True) right before "
                            'PackDetInputs')


def check_length(loader: DataLoader | None, name: str) -> None:
    """Raise UserError where a data loader gives no batch; of several processes one may have none to evaluate."""
    if loader is None or len(loader) or name != 'train' and get_world_size() > 1:
        return
    size = getattr(loader.batch_sampler, 'batch_size', None) or loader.batch_size
    images = len(getattr(loader.batch_sampler, 'sampler', loader.dataset))
    if not images:
        raise UserError(f'{name}_dataloader gives no batch: its data set has no image')
    raise UserError(f'{name}_dataloader gives no batch: {images} images, and drop_last=True wants {size} a batch. '
                    'Use a smaller batch_size, or drop_last=False')


def check_classes(model: nn.Module, dataset: Any) -> None:
    """Raise UserError where a head counts other classes than the data set has (RPNs tell only object or not)."""
    classes = classes_of(dataset)
    if classes is None:
        return
    counts = {name: module.num_classes for name, module in model.named_modules()
              if name and 'rpn' not in name and isinstance(getattr(module, 'num_classes', None), int)}
    wrong = [name for name, count in counts.items() if count != len(classes)]
    wrong = [name for name in wrong if not any(other.startswith(name + '.') for other in wrong)]  # what holds heads
    if wrong:
        have = ', '.join(f'model.{name}.num_classes={counts[name]}' for name in wrong)
        raise UserError(f'{have}, but the data set has {len(classes)} classes ({at_most(classes, 5)}). Set the '
                        f"heads' num_classes={len(classes)}, or the data set's metainfo=dict(classes=...)")


def check_normalisation(model: nn.Module, dataset: Any, place: str) -> None:
    """Raise UserError where a pipeline normalises what the model's preprocessor normalises too."""
    normalises = getattr(getattr(model, 'data_preprocessor', None), 'normalises', False)
    if normalises and any(isinstance(step, Normalize) for step in steps_of(getattr(dataset, 'pipeline', None))):
        raise UserError(f'Normalize in the pipeline of {place}, and mean and std in model.data_preprocessor: images '
                        'would be normalised twice; drop Normalize from the pipeline')


def check_masks(dataset: Any) -> None:
    """Raise UserError where the pipeline of a training set leaves out the masks that a model learns."""
    if loads_no_masks(getattr(dataset, 'pipeline', None)):
        raise UserError('the model learns masks, which the pipeline of train_dataloader does not load; set '
                        'with_mask=True of its LoadAnnotations')


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


def classes_of(dataset: Any) -> tuple[str, ...] | None:
    """The classes that a data set names; None where it says nothing of them."""
    return (getattr(dataset, 'metainfo', None) or {}).get('classes')


def parts_of(dataset: Any) -> Iterator[Any]:
    """The data sets inside ConcatDataset, RepeatDataset and the like."""
    if dataset is None:
        return
    inner = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    if inner == [None]:
        yield dataset
    for part in inner:
        yield from parts_of(part)
