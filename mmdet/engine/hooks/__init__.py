"""Hooks of a run, each registered under its class's name.

`mmdet.engine.runner.build_runner` adds those every run needs; a config lists one to set its options.

mmengine imports this package when a Runner looks up its first hook in our scope, whoever built that Runner. So it is
the place to make saving and loading safe: every Runner has passed it, and `import mmdet` stays quick.
"""

from mmdet.engine import saving
from mmdet.engine.hooks.cbn import CBNHook
from mmdet.engine.hooks.checkpoint import CheckpointGuardHook, SafeCheckpointHook
from mmdet.engine.hooks.data_wait import DataWaitHook
from mmdet.engine.hooks.drawing import DetVisualizationHook
from mmdet.engine.hooks.early_stopping import StrictEarlyStoppingHook
from mmdet.engine.hooks.ema import StatisticsEMAHook
from mmdet.engine.hooks.freeze import FreezeHook
from mmdet.engine.hooks.live_line import LiveLineHook
from mmdet.engine.hooks.non_finite import CheckInvalidLossHook, NonFiniteLossHook
from mmdet.engine.hooks.norm_statistics import SyncNormStatsHook
from mmdet.engine.hooks.num_classes import NumClassCheckHook
from mmdet.engine.hooks.precise_bn import PreciseBNHook, precise_statistics
from mmdet.engine.hooks.progress import ProgressHook
from mmdet.engine.hooks.run_info import RunInfoHook
from mmdet.engine.hooks.seed import StepSeedHook
from mmdet.engine.hooks.stopping import StopSafelyHook
from mmdet.engine.hooks.val_loss import ValLossHook

__all__ = [
    'CBNHook',
    'CheckInvalidLossHook',
    'CheckpointGuardHook',
    'DataWaitHook',
    'DetVisualizationHook',
    'FreezeHook',
    'LiveLineHook',
    'NonFiniteLossHook',
    'NumClassCheckHook',
    'PreciseBNHook',
    'ProgressHook',
    'RunInfoHook',
    'SafeCheckpointHook',
    'StatisticsEMAHook',
    'StepSeedHook',
    'StopSafelyHook',
    'StrictEarlyStoppingHook',
    'SyncNormStatsHook',
    'ValLossHook',
    'precise_statistics',
]

saving.install()
