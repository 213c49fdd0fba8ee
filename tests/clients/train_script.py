"""Training from Python, with the helpers of mmdetection's own tool."""

from mmengine.config import Config
from mmengine.runner import Runner

from mmdet.utils import register_all_modules, setup_cache_size_limit_of_dynamo

setup_cache_size_limit_of_dynamo()
register_all_modules(init_default_scope=False)
cfg = Config.fromfile('config.py')
cfg.work_dir = 'work'
cfg.custom_hooks = [
    dict(type='NumClassCheckHook'),
    dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.0002, update_buffers=True),
]
cfg.default_hooks.visualization = dict(type='DetVisualizationHook', draw=True, interval=1)
runner = Runner.from_cfg(cfg)
runner.train()
print('trained', runner.iter, runner.epoch)
