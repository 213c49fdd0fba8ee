"""A hook that trains the backbone only after some epochs."""

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmdet.registry import HOOKS


@HOOKS.register_module()
class LateBackboneHook(Hook):
    """Freeze the backbone during the first `epochs`; what the config freezes stays frozen afterwards.

    What is frozen follows from the epoch alone, so that a resumed run needs no saved state.
    """

    def __init__(self, epochs: int = 1):
        self.epochs = epochs

    def before_train(self, runner: Runner) -> None:
        model = getattr(runner.model, 'module', runner.model)  # without DistributedDataParallel
        self.weights = [p for p in model.backbone.parameters() if p.requires_grad]

    def before_train_epoch(self, runner: Runner) -> None:
        late = runner.epoch >= self.epochs
        for weight in self.weights:
            weight.requires_grad_(late)
        runner.logger.info(f'backbone: {"trained" if late else "frozen"} in epoch {runner.epoch + 1}')
