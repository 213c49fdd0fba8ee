"""The seed of each training iteration."""

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmdet.engine.seeding import derived_seed, seed_generators
from mmdet.registry import HOOKS


@HOOKS.register_module()
class StepSeedHook(Hook):
    """Seed the generators for each training iteration: a resumed run continues with the same numbers."""

    priority = 'HIGHEST'

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        seed_generators(derived_seed(runner.seed, get_rank(), runner.iter))
