"""Hooks of a run: seeds, losses that are not finite, stopping in time, what the run says of itself, drawn detections.

`mmdet.engine.runner.build_runner` adds those every run needs; a config lists one to set its options.
"""

import math
import os
import signal
from collections import deque
from pathlib import Path

import torch
import torch.distributed as dist
from mmengine.dist import barrier, get_rank, get_world_size, is_distributed, master_only
from mmengine.hooks import EarlyStoppingHook, Hook
from mmengine.runner import Runner
from torch import nn

from mmdet.config.errors import Interrupted, UserError, at_most
from mmdet.engine.hooks.checkpoint import last_good
from mmdet.engine.runner import model_of
from mmdet.engine.scalars import Arriving
from mmdet.engine.seeding import derived_seed, seed_generators
from mmdet.layers import BATCH_NORMS
from mmdet.registry import HOOKS
from mmdet.visualization.visualizer import draw_file


@HOOKS.register_module(name='EarlyStoppingHook')
class StrictEarlyStoppingHook(EarlyStoppingHook):
    """mmengine's hook, which only warns, and never stops, where the metric it watches does not exist: an error here."""

    def after_val_epoch(self, runner: Runner, metrics: dict) -> None:
        if self.monitor not in metrics:
            raise UserError(f'EarlyStoppingHook: monitor={self.monitor!r} is none of the metrics: '
                            f'{at_most(metrics, 12)}. {last_good(runner)}')
        super().after_val_epoch(runner, metrics)


@HOOKS.register_module()
class StepSeedHook(Hook):
    """Seed the generators for each training iteration: a resumed run goes on with the same numbers."""

    priority = 'HIGHEST'

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        seed_generators(derived_seed(runner.seed, get_rank(), runner.iter))


@HOOKS.register_module()
class NonFiniteLossHook(Hook):
    """End training when the loss is NaN or infinite, before the weights it made are evaluated or saved.

    The host does not wait for a GPU to look: there it sees an iteration's losses once they have arrived, as a rule
    while the next one runs.

    Args:
        allowed: iterations in a row that may go wrong (float16 with loss scaling skips such steps).
    """

    priority = 'VERY_HIGH'

    def __init__(self, allowed: int = 0):
        self.allowed, self.in_a_row = allowed, 0
        self.coming: deque[tuple[dict, Arriving]] = deque()  # iterations whose losses have not been looked at

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        self._look(runner)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        losses = {k: v for k, v in (outputs or {}).items() if 'loss' in k}
        samples = data_batch.get('data_samples') or [] if isinstance(data_batch, dict) else []
        if losses:
            about = dict(names=list(losses), epoch=runner.epoch + 1, iteration=runner.iter + 1,
                         pictures=[str(sample.get('img_id', '?')) for sample in samples],
                         lr=next(iter(runner.optim_wrapper.get_lr().values()))[0])
            self.coming.append((about, Arriving(list(losses.values()))))
        self._look(runner)

    def before_val(self, runner: Runner) -> None:
        self._look(runner, wait=True)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self._look(runner, wait=True)

    def after_train(self, runner: Runner) -> None:
        self._look(runner, wait=True)

    def _look(self, runner: Runner, wait: bool = False) -> None:
        while self.coming and (wait or self.coming[0][1].arrived()):
            about, losses = self.coming.popleft()
            bad = [f'{k}={v}' for k, v in zip(about['names'], losses.tolist()) if not math.isfinite(v)]
            self.in_a_row = self.in_a_row + 1 if bad else 0
            if self.in_a_row > self.allowed:
                raise UserError(
                    f'the loss is not finite at epoch {about["epoch"]}, iteration {about["iteration"]}: {at_most(bad)} '
                    f'(pictures {at_most(about["pictures"])}; learning rate {about["lr"]:.3g}). Training is stopped. '
                    f'{last_good(runner)}. Lower the learning rate, lengthen the warm-up, or look at the annotations '
                    'of these pictures')


def average_norm_statistics(model: nn.Module) -> None:
    """Average the running statistics of every BatchNorm over the processes (a collective)."""
    if not is_distributed():
        return
    for module in model.modules():
        if isinstance(module, BATCH_NORMS) and module.track_running_stats:
            for statistics in (module.running_mean, module.running_var):
                dist.all_reduce(statistics)
                statistics /= get_world_size()


@HOOKS.register_module(name=['SyncNormStatsHook', 'SyncBuffersHook'])
class SyncNormStatsHook(Hook):
    """All processes evaluate and save the same running statistics.

    It stands in for mmengine's SyncBuffersHook, which averages every buffer: CBN's history, counters.
    """

    def after_train_epoch(self, runner: Runner) -> None:
        average_norm_statistics(model_of(runner))

    def before_val_epoch(self, runner: Runner) -> None:
        average_norm_statistics(model_of(runner))


@HOOKS.register_module()
class StopSafelyHook(Hook):
    """On SIGTERM or Ctrl-C: finish the iteration, save ``interrupted.pth``, leave with a clear line.

    Several processes finish the next one too: each tells the others after an iteration whether it has had a signal, and
    takes their answer after the next, when it has long arrived. A second signal ends the process at once.
    """

    priority = 'LOWEST'
    filename = 'interrupted.pth'

    def __init__(self):
        self.signum, self.group, self.earlier = 0, None, {}
        self.asked = None  # the question of the last iteration: its work, and a tensor for the answer

    def before_train(self, runner: Runner) -> None:
        if is_distributed():
            # Processes notice a signal in different iterations; they agree through a CPU group of their own.
            self.group = dist.new_group(backend='gloo')
        self.earlier = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}

    def _note(self, signum: int, frame) -> None:
        self.signum = signum
        self._restore()

    def _restore(self) -> None:
        for signum, handler in self.earlier.items():
            signal.signal(signum, handler)
        self.earlier = {}

    def after_train(self, runner: Runner) -> None:
        self._restore()
        self._agreed()

    def _agreed(self) -> int:
        """The signal that any process had had in the iteration before, or 0."""
        if self.asked is None:
            return 0
        work, answer = self.asked
        self.asked = None
        work.wait()
        return int(answer)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        signum = self.signum
        if self.group is not None:
            signum, own = self._agreed(), torch.tensor([signum])
            self.asked = dist.all_reduce(own, op=dist.ReduceOp.MAX, group=self.group, async_op=True), own
        if signum:
            self.signum = signum
            average_norm_statistics(model_of(runner))
            self._leave(runner, epoch=runner.epoch, iteration=runner.iter + 1)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        # Validation may take long; every process has got the signal and nothing of it needs agreement.
        if self.signum:
            self._leave(runner, epoch=runner.epoch, iteration=runner.iter)

    def _leave(self, runner: Runner, epoch: int, iteration: int) -> None:
        runner.save_checkpoint(runner.work_dir, self.filename, by_epoch=False,
                               meta=dict(epoch=epoch, iter=iteration))
        if self.group is not None:
            barrier(self.group)  # nobody leaves, and takes the others down, before the file is written
        raise Interrupted(
            f'stopped by {signal.Signals(self.signum).name} after iteration {iteration} (epoch {epoch + 1}); saved '
            f'{os.path.join(runner.work_dir, self.filename)}, --resume continues from it', self.signum)


@HOOKS.register_module()
class RunInfoHook(Hook):
    """One line about what is trained or tested on what; the number of classes checked before that."""

    priority = 'VERY_HIGH'

    def before_run(self, runner: Runner) -> None:
        for loop in (runner._train_loop, runner._val_loop, runner._test_loop):
            dataset = getattr(getattr(loop, 'dataloader', None), 'dataset', None)
            if dataset is not None:
                check_classes(model_of(runner), dataset)

    def before_train(self, runner: Runner) -> None:
        loader = runner.train_dataloader
        length = (f'{runner.max_epochs} epochs of {len(loader)} iterations' if runner.log_processor.by_epoch
                  else f'{runner.max_iters} iterations')
        self._say(runner, 'Training', loader,
                  f'{length}, seed {runner.seed}' + (f', from iteration {runner.iter}' if runner.iter else ''))

    def before_test(self, runner: Runner) -> None:
        self._say(runner, 'Testing', runner.test_dataloader, f'{len(runner.test_dataloader)} iterations')

    def _say(self, runner: Runner, doing: str, loader, length: str) -> None:
        dataset, model = loader.dataset, model_of(runner)
        classes = (getattr(dataset, 'metainfo', None) or {}).get('classes') or ()
        device = next(model.parameters()).device
        where = torch.cuda.get_device_name(device) if device.type == 'cuda' else 'CPU'
        batch = getattr(loader.batch_sampler, 'batch_size', None) or loader.batch_size
        name = type(getattr(dataset, 'dataset', dataset)).__name__
        runner.logger.info(
            f'{doing} {type(model).__name__} on {name} ({len(dataset)} images, {len(classes)} classes), '
            f'{get_world_size()} x {batch} images a step ({where}), {length}, into {runner.work_dir}')

    def after_train(self, runner: Runner) -> None:
        best = runner.message_hub.get_info('best_ckpt')
        last = runner.message_hub.get_info('last_ckpt')
        runner.logger.info(f'Finished. Last checkpoint: {last}' + (f', best: {best}' if best else ''))


def check_classes(model: nn.Module, dataset) -> None:
    """Raise UserError where a head counts other classes than the data set has (RPNs tell only object or not)."""
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes')
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


@HOOKS.register_module()
class DetVisualizationHook(Hook):
    """Draw the detections of a test run.

    Args:
        out_dir: folder for the pictures, under their own names (and folders, where they come from several); None
            draws nothing.
        score_thr: least score of a drawn detection.
        draw, test_out_dir: mmdet 3's way to name the folder; its other options change nothing here.
    """

    def __init__(self, out_dir: str | None = None, score_thr: float = 0.3, draw: bool = False,
                 test_out_dir: str | None = None, show: bool = False, interval: int = 50, wait_time: float = 0,
                 backend_args: dict | None = None):
        if show or (draw and not (out_dir or test_out_dir)):
            raise UserError('DetVisualizationHook draws into files: give test_out_dir=FOLDER (or --show-dir), no show')
        self.out_dir, self.score_thr = out_dir or (test_out_dir if draw else None), score_thr
        self.root = ''

    def before_test(self, runner: Runner) -> None:
        if self.out_dir is not None:
            dataset = runner.test_dataloader.dataset
            folders = {Path(dataset.get_data_info(i)['img_path']).absolute().parent for i in range(len(dataset))}
            self.root = os.path.commonpath(folders)

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if self.out_dir is None:
            return
        # not the visualizer's: mmengine gives its meta to rank 0 alone
        classes = runner.test_dataloader.dataset.metainfo.get('classes') or ()
        for sample in outputs:
            path = Path(sample.img_path).absolute()
            draw_file(path, sample, Path(self.out_dir) / path.relative_to(self.root), classes, self.score_thr)

    @master_only
    def after_test(self, runner: Runner) -> None:
        if self.out_dir is not None:
            runner.logger.info(f'Drawn detections: {self.out_dir}')
