"""Hooks around checkpoints: what may be saved, what is removed, what a run may load."""

import os
import re
from pathlib import Path

from mmengine.dist import is_main_process, master_only
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner

from mmdet.checkpoints import Checkpoint, fit_weights, weights_for
from mmdet.checkpoints.plain import to_plain
from mmdet.config.errors import UserError, at_most, one_line, say
from mmdet.engine.data_checks import classes_of
from mmdet.engine.launch import on_rank_0
from mmdet.engine.runner import model_of
from mmdet.engine.saving import make_plain, remove_unfinished
from mmdet.engine.schedule import keep_new_schedule
from mmdet.engine.work_dir import INTERRUPTED, checkpoint_folder
from mmdet.registry import HOOKS


@HOOKS.register_module()
class CheckpointGuardHook(Hook):
    """Checkpoints without pickled code, and loaded only where they fit.

    Args:
        resuming: it continues a run (all must fit; a changed schedule is said and kept).
        strict: every weight must have its place (testing).
    """

    priority = 'VERY_LOW'  # after hooks that exchange weights, as EMAHook does, and after CheckpointHook

    def __init__(self, resuming: bool = False, strict: bool = False):
        self.resuming, self.strict = resuming, strict

    def before_train(self, runner: Runner) -> None:
        if is_main_process():
            remove_unfinished(folder_of_checkpoints(runner))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
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


class _KeepAll:
    """A file backend that removes nothing."""

    def __init__(self, backend):
        self.backend = backend

    def __getattr__(self, name: str):
        return getattr(self.backend, name)

    def remove(self, path: str) -> None:
        pass


@HOOKS.register_module(name='CheckpointHook')
class SafeCheckpointHook(CheckpointHook):
    """mmengine's hook for runs that may be killed at any moment, and resumed in another folder.

    mmengine 0.10.7 removes an old checkpoint before the new one is written, keeps for ever what a killed run had no
    time to remove, saves before the evaluation whose results (best score, ReduceOnPlateauLR, early stopping) a
    resumed run needs, and takes a best checkpoint in another folder for its own, to be removed. Can go when it does
    none of these. What this hook saves is plain, whoever built the Runner.
    """

    def __init__(self, *args, **kwargs):
        try:
            super().__init__(*args, **kwargs)
        except (AssertionError, KeyError) as error:  # about the options
            raise UserError(f'CheckpointHook: {one_line(error)}') from error
        name = self.filename_tmpl
        if name.count('{}') != 1 or not name.endswith('.pth') or os.path.basename(name) != name:
            raise UserError(f"CheckpointHook: filename_tmpl={name!r} must be the name of a .pth file with {{}} for the "
                            "number in it, such as 'epoch_{}.pth'")

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        make_plain(checkpoint)

    def before_train(self, runner: Runner) -> None:
        folder = checkpoint_folder(runner.work_dir, self.out_dir)
        info = runner.message_hub.runtime_info
        saved = {key: os.path.join(folder, os.path.basename(path)) for key, path in info.items()
                 if key.startswith(('best_ckpt', 'last_ckpt'))}
        there = on_rank_0(lambda: [key for key, path in saved.items() if os.path.isfile(path)])
        keys = self.key_indicators if self.save_best else ()
        if len(keys) == 1 and keys[0] != 'auto':
            other = not os.path.basename(saved.get('best_ckpt', '')).startswith(f'best_{keys[0]}_'.replace('/', '_'))
            there = [key for key in there if key != 'best_ckpt' or not other]
        for key, path in saved.items():
            if key in there:
                info[key] = path
            else:  # of another folder, or by another metric: here the best is yet to come
                info.pop(key)
                info.pop(key.replace('best_ckpt', 'best_score'), None)
        super().before_train(runner)
        self.file_backend = _KeepAll(self.file_backend)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        runner.call_hook('gather_rank_state')
        super()._save_checkpoint_with_step(runner, step, meta)
        self._remove_outdated(runner, step)

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
        last, self.last_ckpt = self.last_ckpt, None  # mmengine would save the state here, before later hooks counted
        super()._save_best_checkpoint(runner, metrics)
        self.last_ckpt = last

    def after_val(self, runner: Runner) -> None:
        """Save the checkpoint of this epoch or iteration again, with what came out of its evaluation."""
        if not isinstance(runner._train_loop, BaseLoop):
            return
        step = runner.epoch if self.by_epoch else runner.iter
        last = runner.message_hub.runtime_info.get('last_ckpt') or ''
        if os.path.basename(last) == self.filename_tmpl.format(step):
            self._save_checkpoint_with_step(runner, step, dict(epoch=runner.epoch, iter=runner.iter))
        else:
            self._remove_outdated(runner, step)

    @master_only
    def _remove_outdated(self, runner: Runner, now: int) -> None:
        """Leave the last `max_keep_ckpts` and the best, whatever earlier starts of this run left behind."""
        steps = {step: path for step, path in self._steps('').items() if step <= now}
        outdated = sorted(steps)[: -self.max_keep_ckpts] if self.max_keep_ckpts > 0 else []
        paths = [steps[step] for step in outdated]
        best = {path for key, path in runner.message_hub.runtime_info.items() if key.startswith('best_ckpt')}
        for key in self.key_indicators if self.save_best and best else ():
            paths += set(self._steps(f'best_{key}_'.replace('/', '_')).values()) - best
        if self.last_ckpt:
            paths.append(os.path.join(self.out_dir, INTERRUPTED))
        for path in paths:
            Path(path).unlink(missing_ok=True)

    def _steps(self, prefix: str) -> dict[int, str]:
        """The files that this hook names by epoch or iteration, behind a prefix."""
        name = re.compile(re.escape(prefix + self.filename_tmpl).replace(r'\{\}', r'(\d+)'))
        found = [(name.fullmatch(file), file) for file in os.listdir(self.out_dir)]
        return {int(match[1]): os.path.join(self.out_dir, file) for match, file in found if match}


def compare_classes(meta: dict, dataset, source: str, kind: str = 'test') -> None:
    """Raise UserError where a checkpoint has the data set's classes in another order; say where it has others, or may
    count them in mmdetection's order."""
    trained = tuple((meta.get('dataset_meta') or {}).get('classes') or ())
    given = tuple(classes_of(dataset) or ())
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


def folder_of_checkpoints(runner: Runner) -> str:
    """Where this run's checkpoints are, once its training has begun."""
    folders = (hook.out_dir for hook in runner.hooks if isinstance(hook, CheckpointHook))
    return next(folders, None) or runner.work_dir


def last_good(runner: Runner) -> str:
    """A sentence on where training can be resumed from, for messages that end it."""
    saved = [p for p in Path(folder_of_checkpoints(runner)).glob('*.pth') if not p.name.startswith('best_')]
    if not saved:
        return 'No checkpoint had been saved yet'
    return f'The last good checkpoint is {max(saved, key=os.path.getmtime)}'
