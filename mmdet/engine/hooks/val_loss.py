"""The loss on validation images, beside their metrics."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmdet.config.errors import UserError
from mmdet.config.values import predicted_fields
from mmdet.datasets.pipeline import loaded_boxes, loads_no_masks, moves_pixels, steps_of
from mmdet.datasets.transforms import Pad, RandomChoiceResize, RandomResize, Resize
from mmdet.engine.data_checks import parts_of
from mmdet.engine.runner import model_of
from mmdet.engine.seeding import derived_seed, seed_generators
from mmdet.registry import HOOKS
from mmdet.structures import DetDataSample
from mmdet.structures.boxes import scale_boxes

_SCALING = (Resize, RandomResize, RandomChoiceResize, Pad)  # what `scale_factor` says all about


@HOOKS.register_module()
class ValLossHook(Hook):
    """Add the losses on the validation set to its metrics: 'val_loss', their sum, and 'val_loss_cls' and so on.

    A second forward pass of each validation batch, in eval mode and without gradient: norm layers use and keep their
    running statistics, CBN its history, and dropout is off. What is random in a loss (the sampling of proposals) is
    drawn from generators seeded by the batch's number, the same in every epoch; training finds its own untouched.
    Means over the images of all processes; an image that a sampler repeats counts twice.

    The validation pipeline needs ``LoadAnnotations`` (with_mask=True for masks), before or after ``Resize``.
    """

    priority = 'HIGHEST'  # before mmengine's hooks hand the metrics on, to the log and to save_best

    def before_run(self, runner: Runner) -> None:
        if runner._train_loop is None:  # testing
            return
        dataset = getattr(getattr(runner._val_loop, 'dataloader', None), 'dataset', None)
        if dataset is None:
            raise UserError('ValLossHook: the config has no validation: val_dataloader, val_cfg, val_evaluator')
        model = runner.cfg.get('model') or {}
        with_masks = 'masks' in (predicted_fields(model) or ())
        frames = {_check_pipeline(getattr(part, 'pipeline', None), with_masks) for part in parts_of(dataset)}
        if len(frames) > 1:
            raise UserError('ValLossHook: LoadAnnotations stands before Resize in one part of the validation set and '
                            'after it in another')
        self.scale = frames == {'original'}

    def before_val_epoch(self, runner: Runner) -> None:
        self.sums, self.images = Counter(), 0

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None,
                       outputs: Sequence | None = None) -> None:
        if runner._train_loop is None:
            return
        model = model_of(runner)
        batch = dict(data_batch, data_samples=[self._target(sample) for sample in data_batch['data_samples']])
        with torch.no_grad(), _generators(derived_seed(0, batch_idx)):
            losses = model(**model.data_preprocessor(batch, False), mode='loss')
        for name, value in model.parse_losses(losses)[1].items():
            self.sums[name] += value.detach().double() * len(batch['data_samples'])
        self.images += len(batch['data_samples'])

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        if not self.images:
            return
        first = next(iter(self.sums.values()))
        totals = torch.stack([*self.sums.values(), first.new_tensor(self.images)])
        all_reduce(totals)
        *sums, images = totals.tolist()
        metrics.update({f'val_{name}': value / images for name, value in zip(self.sums, sums)})

    def _target(self, sample: DetDataSample) -> DetDataSample:
        """A sample whose objects are in pixels of the model's input."""
        new = sample.new()
        if self.scale:
            for key in {'gt_instances', 'ignored_instances'} & set(sample.keys()):
                objects = sample.get(key).clone()
                objects.bboxes = scale_boxes(objects.bboxes, sample.scale_factor)
                if 'masks' in objects:
                    objects.masks = objects.masks.resize(sample.img_shape[:2])
                new.set_field(objects, key)
        return new


def _check_pipeline(pipeline, with_masks: bool) -> str | None:
    """What `loaded_boxes` says of a validation pipeline, if the losses can be computed of what it loads."""
    frame, steps = loaded_boxes(pipeline), list(steps_of(pipeline))
    loading = [step for step in steps if getattr(step, 'loads_annotations', False)]
    if steps and not loading:
        raise UserError("ValLossHook: the validation pipeline loads no objects; put dict(type='LoadAnnotations', "
                        'with_bbox=True) before Resize in it')
    if with_masks and loads_no_masks(pipeline):
        raise UserError('ValLossHook: the model learns masks, which the validation pipeline does not load; set '
                        'with_mask=True of its LoadAnnotations')
    moving = [step for step in steps if moves_pixels(step) and not isinstance(step, _SCALING)]
    if frame == 'original' and moving:
        raise UserError(f'ValLossHook: {type(moving[0]).__name__} of the validation pipeline stands before '
                        'LoadAnnotations and moves the image otherwise than by a scale; put LoadAnnotations first')
    return frame


@contextmanager
def _generators(seed: int) -> Iterator[None]:
    """Seeded generators meanwhile; afterwards they go on as if nothing had been drawn."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_available() else []):
        seed_generators(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
