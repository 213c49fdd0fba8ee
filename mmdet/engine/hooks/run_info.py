"""What a run says of itself."""

import shlex
from pathlib import Path

import torch
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, IterBasedTrainLoop, Runner

from mmdet.engine.data_checks import check_data, classes_of
from mmdet.engine.hooks.live_line import best_of, percent
from mmdet.engine.log import fit_interval
from mmdet.engine.runner import model_of
from mmdet.engine.schedule import accumulated, batch_of_a_process
from mmdet.registry import HOOKS


@HOOKS.register_module()
class RunInfoHook(Hook):
    """One line about what is trained or tested on what, once model, data sets and metrics are seen to agree."""

    priority = 'VERY_HIGH'

    def before_run(self, runner: Runner) -> None:
        check_data(runner, model_of(runner))

    def before_train(self, runner: Runner) -> None:
        fit_interval(runner)
        loader = runner.train_dataloader
        length = (f'{runner.max_epochs} epochs of {len(loader)} iterations' if runner.log_processor.by_epoch
                  else f'{runner.max_iters} iterations')
        counts = accumulated(runner.optim_wrapper)
        self._say(runner, 'Training', loader,
                  f'{length}, seed {runner.seed}' + (f', from iteration {runner.iter}' if runner.iter else ''),
                  f' x {counts} iterations' if counts > 1 else '')

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Note in the checkpoint which evaluation has been done: a resumed run makes up one that is missing."""
        loop = runner._train_loop
        if isinstance(loop, BaseLoop):
            done = loop.iter if isinstance(loop, IterBasedTrainLoop) else loop.epoch
            runner.message_hub.update_info('evaluated', done)

    def before_test(self, runner: Runner) -> None:
        self._say(runner, 'Testing', runner.test_dataloader, f'{len(runner.test_dataloader)} iterations')

    def _say(self, runner: Runner, doing: str, loader, length: str, times: str = '') -> None:
        dataset, model = loader.dataset, model_of(runner)
        classes = classes_of(dataset) or ()
        device = next(model.parameters()).device
        where = torch.cuda.get_device_name(device) if device.type == 'cuda' else 'CPU'
        name = type(getattr(dataset, 'dataset', dataset)).__name__
        runner.logger.info(
            f'{doing} {type(model).__name__} on {name} ({len(dataset)} images, {len(classes)} classes), '
            f'{get_world_size()} x {batch_of_a_process(loader)} images{times} a step ({where}), {length}, '
            f'into {runner.work_dir}')

    def after_train(self, runner: Runner) -> None:
        runner.logger.info('\n  '.join(_summary(runner)))


def _summary(runner: Runner) -> list[str]:
    """What came out, where it is, and what comes next; the log's last lines."""
    info, folder = runner.message_hub.runtime_info, Path(runner.work_dir)
    best, last = info.get('best_ckpt'), info.get('last_ckpt')
    score = best_of(runner)
    lines = [f'Finished. Best {score[0]}: {percent(*score[:2])} ({score[2]})' if score else 'Finished.']
    for name, path in {'best': best, 'last': last, 'log': f'{runner.log_dir}/{runner.timestamp}.log'}.items():
        lines += [f'{name:7}{_short(path)}'] if path else []
    lines.append(f'curves mmdet curves {_short(folder)}')
    config = folder / Path(runner.cfg.filename or '').name
    if config.is_file() and (best or last) and runner.cfg.get('test_dataloader'):
        config, found = _short(config), _short(folder / 'found.pkl')
        lines += [f'next   mmdet test {config} {_short(best or last)} --out {found}',
                  f'       mmdet analyze {config} {found}']
    return lines


def _short(path: str | Path) -> str:
    """As one would type it here."""
    path = Path(path)
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))
