"""A line that moves while a terminal watches the training."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner

from mmdet.engine.message_hub import AsyncCopy
from mmdet.registry import HOOKS

_EVERY = 0.2  # seconds between two drawings
_LONGEST_BAR = 30  # characters
# Lines of iterations: what the live line says too. The results of an evaluation have no `eta`.
_ITERATION = re.compile(r'(Epoch|Iter)\((train\)|val\).* eta: )')


@HOOKS.register_module()
class LiveLineHook(Hook):
    """Epoch, bar, loss, learning rate, wait for data, AP and time left in one line that moves; first process alone.

    Where standard output is a terminal and rich is installed, the log's lines of iterations then go to the file only,
    and all that is printed stands above the line. Elsewhere this hook does nothing. The cursor is never hidden and the
    terminal's modes stay, so that however the process ends, the terminal can be used.
    """

    priority = 'LOWEST'  # after the checkpoint hook, which knows what is best

    def __init__(self):
        self.live, self.handler = None, None
        self.drawn = 0.0
        self.loss: float | None = None
        self.copy: AsyncCopy | None = None
        self.metric = ''

    def before_train(self, runner: Runner) -> None:
        self.live = _rich_live() if is_main_process() else None
        if self.live is None:
            return
        self.live.start()
        self.live.console.show_cursor(True)
        for handler in runner.logger.handlers:
            if getattr(handler, 'stream', None) is self.live.console.file:
                self.handler = handler
                handler.setStream(sys.stdout)  # which prints above the line now
                handler.addFilter(_no_iteration)
        self._remember(runner, {})

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if not self._due():
            return
        self._follow_loss((outputs or {}).get('loss'))
        if isinstance(runner.train_loop, IterBasedTrainLoop):
            self._draw('Iteration', runner.iter + 1, runner.max_iters, self._facts(runner))
        else:
            epoch = f'Epoch {runner.epoch + 1}/{runner.max_epochs}'
            self._draw(epoch, batch_idx + 1, len(runner.train_dataloader), self._facts(runner))

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if self._due():
            facts = [self.metric] if self.metric else []
            self._draw('Evaluation', batch_idx + 1, len(runner.val_dataloader), facts)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        if self.live is not None and metrics:
            self._remember(runner, metrics)

    def after_train(self, runner: Runner) -> None:
        self.leave_terminal(runner)

    def leave_terminal(self, runner: Runner) -> None:
        """Take the line away; however a training ends."""
        live, self.live = self.live, None
        if live is None:
            return
        with contextlib.suppress(OSError):  # the terminal was closed
            live.stop()
        if self.handler is not None:
            self.handler.setStream(live.console.file)
            self.handler.removeFilter(_no_iteration)

    def _due(self) -> bool:
        return self.live is not None and time.monotonic() - self.drawn > _EVERY

    def _follow_loss(self, loss: Any) -> None:
        """A running mean of the losses that have reached the host: a GPU is not waited for."""
        if self.copy is not None and self.copy.arrived():
            value, = self.copy.tolist()
            self.loss = value if self.loss is None else self.loss + 0.2 * (value - self.loss)
            self.copy = None
        if self.copy is None and loss is not None:
            self.copy = AsyncCopy([loss])

    def _remember(self, runner: Runner, metrics: dict[str, float]) -> None:
        best = best_of(runner)
        key = best[0] if best and best[0] in metrics else next(iter(metrics), None)
        parts = [] if key is None else [f'{key.rpartition("/")[2]} {percent(key, metrics[key])}']
        if best:
            parts.append(f'best {percent(*best[:2])} ({best[2]})')
        self.metric = ', '.join(parts)

    def _draw(self, doing: str, done: int, of: int, facts: list[str]) -> None:
        self.drawn = time.monotonic()
        with contextlib.suppress(OSError):  # of a terminal that was closed, of which a signal tells in a moment
            self.live.update(_line(self.live.console.width, doing, done, of, facts), refresh=True)

    def _facts(self, runner: Runner) -> list[str]:
        hub = runner.message_hub
        rates = next(iter(runner.optim_wrapper.get_lr().values()), [0.0])
        facts = [] if self.loss is None else [f'loss {self.loss:.3f}']
        facts.append(f'lr {rates[0]:.2g}')
        share = waiting_share(runner)
        if share is not None:
            facts.append(f'data wait {share:.0%}')
        if self.metric:
            facts.append(self.metric)
        if 'eta' in hub.runtime_info:
            facts.append(f'ETA {timedelta(seconds=int(hub.get_info("eta")))}')
        return facts


def waiting_share(runner: Runner, window: int = 20) -> float | None:
    """The part of the last iterations' time that went into waiting for data; None where nobody measures it."""
    hub = runner.message_hub
    try:
        time, data_time = hub.get_scalar('train/time'), hub.get_scalar('train/data_time')
    except KeyError:
        return None
    return data_time.mean(window) / max(time.mean(window), 1e-9)


def best_of(runner: Runner) -> tuple[str, float, str] | None:
    """The metric that checkpoints are chosen by, its best value, and when that was ('epoch 3')."""
    info = runner.message_hub.runtime_info
    keys = [key for hook in runner.hooks for key in getattr(hook, 'key_indicators', None) or ()]
    for name, path in info.items():
        found = re.fullmatch(r'best_(.+)_(epoch|iter)_(\d+)', Path(str(path)).stem)  # best_coco_bbox_mAP_epoch_3.pth
        score = info.get(name.replace('best_ckpt', 'best_score'))
        if name.startswith('best_ckpt') and found and score is not None:
            key = next((key for key in keys if key.replace('/', '_') == found[1]), found[1])
            return key, float(score), f'{found[2]} {found[3]}'
    return None


def percent(key: str, value: float) -> str:
    """A metric as it is read: AP and AR from 0 to 100, others as they are.

    >>> percent('coco/bbox_mAP', 0.3312), percent('coco/bbox_mAP', -1), percent('val_loss', 0.5)
    ('33.1', '-', '0.5')
    """
    if re.search(r'm?A[PR]\d*(@\d+|_\w+)?$', key):
        return f'{100 * value:.1f}' if value >= 0 else '-'
    return f'{value:.4g}'


def _no_iteration(record: logging.LogRecord) -> bool:
    return _ITERATION.match(record.getMessage()) is None or record.levelno > logging.INFO


def _rich_live() -> Any:
    """rich's display that is erased at its end, on a terminal; None elsewhere."""
    if not sys.stdout.isatty():
        return None
    try:
        from rich.console import Console
        from rich.live import Live
    except ImportError:
        return None
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)  # a path in a long line stays whole
    if console.is_dumb_terminal or not console.is_terminal:
        return None
    # no thread draws it: data loaders fork
    return Live('', console=console, auto_refresh=False, transient=True)


def _line(width: int, doing: str, done: int, of: int, facts: list[str]) -> Any:
    """One line of at most `width` characters; where they do not suffice the bar goes first, then the end."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    head, tail = f'{doing} ', ' '.join(['', f'{done}/{of} ', '  '.join(facts)])
    space = min(width - 1 - len(head) - len(tail), _LONGEST_BAR)
    line = Table.grid()
    if space < 5:
        line.add_row(Text(head.strip() + tail, no_wrap=True, overflow='ellipsis'))
    else:
        bar = ProgressBar(total=of, completed=done, width=space)
        line.add_row(Text(head), bar, Text(tail, no_wrap=True, overflow='ellipsis'))
    return line
