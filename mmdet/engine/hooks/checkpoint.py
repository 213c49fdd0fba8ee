"""Hooks around checkpoints: what may be saved, what is removed, what a run may load."""

import os
from pathlib import Path

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmdet.checkpoints import Checkpoint, fit_weights, weights_for
from mmdet.checkpoints.plain import to_plain
from mmdet.config.errors import UserError, at_most, say
from mmdet.engine.runner import model_of
from mmdet.engine.saving import make_plain, remove_unfinished
from mmdet.engine.schedule import keep_new_schedule
from mmdet.registry import HOOKS


@HOOKS.register_module()
class CheckpointGuardHook(Hook):
    """Checkpoints without pickled code, with finite weights, and loaded only where they fit.

    Args:
        resuming: it continues a run (all must fit; a changed schedule is said and kept).
        strict: every weight must have its place (testing).
    """

    priority = 'VERY_LOW'  # after hooks that exchange weights, as EMAHook does

    def __init__(self, resuming: bool = False, strict: bool = False):
        self.resuming, self.strict = resuming, strict

    def before_train(self, runner: Runner) -> None:
        if is_main_process():
            remove_unfinished(runner.work_dir)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        weights = dict(model_of(runner).named_parameters())
        whole = torch.stack([torch.isfinite(weight).all() for weight in weights.values()])
        for name, finite in zip(weights, whole.tolist()):  # together: a GPU is waited for once
            if not finite:
                raise UserError(f'{name} holds NaN or infinity at iteration {runner.iter}: no checkpoint is '
                                f'written. {last_good(runner)}')
        checkpoint['meta']['iterations_per_epoch'] = len(runner.train_dataloader)
        make_plain(checkpoint)

    def after_load_checkpoint(self, runner: Runner, checkpoint: Checkpoint) -> None:
        model = model_of(runner)
        if self.resuming:
            checkpoint['state_dict'] = fit_weights(model, checkpoint.weights, checkpoint.path)
        else:
            checkpoint['state_dict'] = weights_for(model, checkpoint, self.strict)
        if self.strict:
            compare_classes(checkpoint.meta, runner.test_dataloader.dataset, checkpoint.path)
        if not self.resuming:
            return
        if 'ema_state_dict' in checkpoint and not any(isinstance(hook, EMAHook) for hook in runner.hooks):
            raise UserError(f'{checkpoint} is of a run with EMAHook: its weights are averages, and only that hook '
                            "takes the trained ones beside them: put custom_hooks=[dict(type='EMAHook')] back")
        compare_classes(checkpoint.meta, runner.train_dataloader.dataset, checkpoint.path, 'training')
        metainfo = getattr(runner.train_dataloader.dataset, 'metainfo', None)
        if to_plain(metainfo) == to_plain(checkpoint['meta'].get('dataset_meta')):
            checkpoint['meta']['dataset_meta'] = metainfo  # mmengine compares their pickles, not their values
        count_iterations_anew(runner, checkpoint['meta'])
        keep_new_schedule(runner, checkpoint)


class _RemoveLater:
    """A file backend that notes what is to be removed."""

    def __init__(self, backend):
        self.backend, self.outdated = backend, []

    def __getattr__(self, name: str):
        return getattr(self.backend, name)

    def remove(self, path: str) -> None:
        self.outdated.append(path)


@HOOKS.register_module(name='CheckpointHook')
class SafeCheckpointHook(CheckpointHook):
    """mmengine's hook, which removes an old (or formerly best) checkpoint before the new one is written: after it here.

    A run that ends in between then has two files, and not none. What it saves is plain, whoever built the Runner.
    """

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        make_plain(checkpoint)

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        self.file_backend = _RemoveLater(self.file_backend)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        super()._save_checkpoint_with_step(runner, step, meta)
        self._remove_outdated(runner)

    def _init_rule(self, rules: list, key_indicators: list[str]) -> None:
        try:
            super()._init_rule(rules, key_indicators)
        except ValueError as error:
            raise UserError(f'CheckpointHook: save_best={at_most(key_indicators)}: give a metric such as '
                            "coco/bbox_mAP, or say by rule='greater' or 'less' what is better") from error

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        wrong = set(self.key_indicators if self.save_best else ()) - {'auto', *metrics}
        if wrong:
            raise UserError(f'CheckpointHook: save_best={min(wrong)!r} is none of the metrics: {at_most(metrics, 12)}. '
                            f'{last_good(runner)}')
        super()._save_best_checkpoint(runner, metrics)
        self._remove_outdated(runner)

    def _remove_outdated(self, runner: Runner) -> None:
        best = (path for key, path in runner.message_hub.runtime_info.items() if key.startswith('best_ckpt'))
        for path in set(self.file_backend.outdated) - {self.last_ckpt, *best}:  # it may have been written anew
            self.file_backend.backend.remove(path)
        self.file_backend.outdated = []


def compare_classes(meta: dict, dataset, source: str, kind: str = 'test') -> None:
    """Raise UserError where a checkpoint has the data set's classes in another order; say where it has others, or may
    count them in mmdetection's order."""
    trained = tuple((meta.get('dataset_meta') or {}).get('classes') or ())
    given = tuple((getattr(dataset, 'metainfo', None) or {}).get('classes') or ())
    in_file = getattr(dataset, 'order_in_file', given)
    if in_file != given and 'iterations_per_epoch' not in meta:  # not saved by a training with this toolbox
        say(f'{source}: labels have the order of metainfo.classes here, in mmdetection that of the annotation file '
            f'({at_most(in_file, 8)}): if it was trained there, list the classes so')
    if not trained or not given or trained == given:
        return
    text = f'{source} was trained on the classes {at_most(trained, 8)}, the {kind} data set has {at_most(given, 8)}'
    if sorted(trained) == sorted(given):
        raise UserError(f"{text}: give the data set's metainfo=dict(classes=...) the checkpoint's order")
    say(f'{text}: taken as other names of the same')


def count_iterations_anew(runner: Runner, meta: dict) -> None:
    """Where the epochs had another length (other processes or batch size), find the place with the same images seen."""
    was, now = meta.get('iterations_per_epoch'), len(runner.train_dataloader)
    if was in (None, now) or not isinstance(runner.train_loop, EpochBasedTrainLoop):
        return
    done = meta['iter'] - meta['epoch'] * was
    same_place = meta['epoch'] * now + done * now // was
    say(f'epochs have {now} iterations now and had {was}: iteration {meta["iter"]} counts as {same_place}')
    meta['iter'] = same_place


def last_good(runner: Runner) -> str:
    """A sentence on where training can go on from, for messages that end it."""
    saved = [p for p in Path(runner.work_dir).glob('*.pth') if not p.name.startswith('best_')]
    if not saved:
        return 'No checkpoint had been saved yet'
    return f'The last good checkpoint is {max(saved, key=os.path.getmtime)}'
