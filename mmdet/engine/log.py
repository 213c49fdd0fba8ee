"""What a run's log holds: memory on machines without a GPU too, and nothing that mmengine says of itself."""

import logging
import resource
import sys
import warnings

from mmengine.dist import get_rank
from mmengine.hooks import LoggerHook
from mmengine.runner import LogProcessor, Runner

from mmdet.registry import LOG_PROCESSORS

# How mmengine's messages begin that tell a person nothing; each can go when mmengine no longer logs it.
_NOISE = (
    'Exp name:', 'Distributed training is not used', 'Checkpoints will be saved to',
    '"FileClient" will be deprecated', '"HardDiskBackend" is the alias', 'The prefix is not set in metric',
    '`save_param_scheduler` is True but', 'paramwise_options -- ',
)  # fmt: skip

_LINES = 4  # in an epoch, at least


def quieten(logger: logging.Logger, level: str) -> None:
    """Log at `level` from now on, without what mmengine says about itself."""
    logger.addFilter(_tidy)
    for handler in list(logger.handlers):
        if get_rank() == 0:
            handler.setLevel(level)
        if isinstance(handler, logging.FileHandler):
            # mmengine writes how each parameter was initialised into every FileHandler, past all filters.
            plain = logging.StreamHandler(open(handler.baseFilename, 'a', encoding='utf-8'))
            plain.setLevel(handler.level)
            plain.setFormatter(handler.formatter)
            plain.filters = handler.filters
            logger.removeHandler(handler)
            handler.close()
            logger.addHandler(plain)
    if get_rank() == 0:
        logger.setLevel(level)


def _tidy(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    about_a_weight = ' - torch.Size(' in text or ' is skipped since its requires_grad=' in text
    return not text.startswith(_NOISE) and not about_a_weight


def ignore_known_warnings() -> None:
    """Warnings that mmengine 0.10.7 causes, or that say what is meant."""
    # torch 2.15 is about to rename this argument; can go when mmengine follows
    warnings.filterwarnings('ignore', '`broadcast_buffers` is deprecated', FutureWarning)
    warnings.filterwarnings('ignore', 'This DataLoader will create', UserWarning)  # more workers than cores
    warnings.filterwarnings('ignore', r'`torch\.cuda\.amp\.GradScaler', FutureWarning)  # mmengine's name for it
    # mmengine restores the schedulers' step counts of a resumed run, and not the optimizer's
    warnings.filterwarnings('ignore', r'Detected call of `scheduler.step\(\)` before', UserWarning)


def fit_interval(runner: Runner) -> None:
    """At least a few lines of the log in each epoch, or in a run that has none, whatever the config's interval."""
    length = len(runner.train_dataloader) if runner.log_processor.by_epoch else runner.max_iters
    for hook in runner.hooks:
        if isinstance(hook, LoggerHook) and 2 * hook.interval > length:
            given, hook.interval = hook.interval, max(1, length // _LINES)
            if given > length:
                what = 'an epoch' if runner.log_processor.by_epoch else 'this run'
                runner.logger.info(f'default_hooks.logger.interval={given} is longer than {what} of {length} '
                                   f'iterations: the log has a line every {hook.interval}')


@LOG_PROCESSORS.register_module(name='LogProcessor')
class MemoryLogProcessor(LogProcessor):
    """mmengine's log line, with the peak resident memory (MB) where there is no GPU.

    mmengine 0.10.7 logs a GPU's memory alone; can go when it logs the process's.
    """

    def get_log_after_iter(self, runner: Runner, batch_idx: int, mode: str) -> tuple[dict, str]:
        tag, line = super().get_log_after_iter(runner, batch_idx, mode)
        if 'memory' not in tag:
            unit = 1 if sys.platform == 'darwin' else 1024
            tag['memory'] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit // 2**20
            head, mark, tail = line.partition('data_time: ')
            time, _, rest = tail.partition('  ')
            line = f'{head}{mark}{time}  memory: {tag["memory"]}  {rest}' if mark else line
        return tag, line
