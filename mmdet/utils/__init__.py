"""mmdetection 3's `mmdet.utils`, for code that was written for it; nothing here is used by this project itself."""

import os
from collections.abc import Sequence

from mmengine.config import Config, ConfigDict
from mmengine.dist import all_reduce, get_world_size
from mmengine.registry import init_default_scope as _use_scope
from mmengine.structures import InstanceData, PixelData
from torch import Tensor

import mmdet.config.shipped  # noqa: F401  a script that reads its own config finds ``mmdet::`` bases
from mmdet.config.absent import absent
from mmdet.structures import OptSampleList, SampleList

ConfigType = ConfigDict | dict
OptConfigType = ConfigType | None
MultiConfig = ConfigType | list[ConfigType]
OptMultiConfig = MultiConfig | None
InstanceList = list[InstanceData]
OptInstanceList = InstanceList | None
PixelList = list[PixelData]
OptPixelList = PixelList | None
RangeType = Sequence[tuple[int, int]]

__all__ = [
    'ConfigType', 'InstanceList', 'MultiConfig', 'OptConfigType', 'OptInstanceList', 'OptMultiConfig', 'OptPixelList',
    'OptSampleList', 'PixelList', 'RangeType', 'SampleList', 'collect_env', 'get_test_pipeline_cfg', 'reduce_mean',
    'register_all_modules', 'setup_cache_size_limit_of_dynamo',
]  # fmt: skip


def register_all_modules(init_default_scope: bool = True) -> None:
    """Make the types of a config known. The registries import their parts by themselves; the scope is left to do."""
    if init_default_scope:
        _use_scope('mmdet')


def setup_cache_size_limit_of_dynamo() -> None:
    """Let ``torch.compile`` keep DYNAMO_CACHE_SIZE_LIMIT (4) versions of a function, as mmdetection's tools do."""
    import torch._dynamo

    torch._dynamo.config.cache_size_limit = int(os.environ.get('DYNAMO_CACHE_SIZE_LIMIT', 4))


def get_test_pipeline_cfg(cfg: str | ConfigDict) -> list:
    """The steps of the test pipeline of a config, or of a config file."""
    cfg = Config.fromfile(cfg, lazy_import=False) if isinstance(cfg, str) else cfg
    dataset = cfg.test_dataloader.dataset
    while 'pipeline' not in dataset:
        dataset = dataset.get('dataset') or dataset.datasets[0]
    return dataset.pipeline


def reduce_mean(tensor: Tensor) -> Tensor:
    """The mean over all processes, as a new tensor."""
    if get_world_size() == 1:
        return tensor
    tensor = tensor.clone()
    all_reduce(tensor, 'mean')
    return tensor


def collect_env() -> dict:
    """Versions of what is installed, and of this package."""
    from mmengine.utils.dl_utils import collect_env as collect

    from mmdet.version import __version__

    return {**collect(), 'MMDetection': __version__}


__getattr__ = absent(
    __name__,
    replace_cfg_vals='variables of a config are plain Python; give values by --cfg-options KEY=VALUE',
    update_data_root='give --cfg-options data_root=FOLDER',
    setup_multi_processes='the tools set env_cfg.mp_cfg themselves',
    get_root_logger='use mmengine.logging.MMLogger.get_current_instance()',
    AvoidCUDAOOM='lower train_dataloader.batch_size, or set activation_checkpointing',
    split_batch='semi-supervised training is not here',
)
