"""Drives Cross-Iteration Batch Normalization from mmengine's Runner."""

from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop

from mmdet.engine.launch import gather_differences
from mmdet.engine.runner import model_of
from mmdet.layers.cbn import cbn_layers, cbn_state, load_cbn_state, set_cbn_epoch
from mmdet.registry import HOOKS


@HOOKS.register_module()
class CBNHook(Hook):
    """Ends the burn-in of CBN layers by the epoch, and carries their histories through a resume.

    In an epoch-based loop ``burnin=8`` ends with the eighth epoch; in an iteration-based one when eight
    times the data set has been drawn, over all processes. The histories go into the training checkpoint, not into
    the state dict: rank 0's under ``cbn``, those of the others, which differ without ``sync=True``, under
    ``rank_cbn``. Another number of processes resumes from rank 0's. A model without CBN layers is left alone.
    """

    priority = 'NORMAL'

    def __init__(self):
        self.gathered: list[dict] = []  # for the checkpoint about to be saved

    def gather_rank_state(self, runner) -> None:
        self.gathered = gather_differences(cbn_state(model_of(runner)))

    def before_train(self, runner) -> None:
        self._tell_epoch(runner)
        self._pending = self._burning_in(runner)
        layers = cbn_layers(model_of(runner))
        if layers and not self._pending:
            runner.logger.info(f'CBN: {len(layers)} layers normalise over iterations; no burn-in ahead')
        epochs = max((layer.burnin or 0 for layer in layers.values()), default=0)
        if self._pending and not isinstance(runner.train_loop, IterBasedTrainLoop) and epochs >= runner.max_epochs:
            runner.logger.warning(f'CBN: burnin={epochs} epochs last as long as this run of {runner.max_epochs}: the '
                                  'layers stay BatchNorm. Lower burnin in norm_cfg, or train longer')

    def before_train_epoch(self, runner) -> None:
        self._tell_epoch(runner)

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if not self._pending:
            return
        self._tell_epoch(runner)
        if not self._burning_in(runner):
            self._pending = False
            runner.logger.info(
                f'CBN: burn-in ends; {len(cbn_layers(model_of(runner)))} layers normalise over iterations '
                f'from epoch {runner.epoch + 1}, iteration {runner.iter + 1} on'
            )

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        state = cbn_state(model_of(runner))
        if state:
            checkpoint['cbn'] = state
        gathered, self.gathered = self.gathered, []
        if gathered:
            checkpoint['rank_cbn'] = gathered

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if not runner._resume or not cbn_layers(model_of(runner)):
            return
        if 'cbn' not in checkpoint:
            runner.logger.warning('CBN: the checkpoint holds no histories; they fill up again')
            return
        own = [{}, *checkpoint.get('rank_cbn', ())]
        state = checkpoint['cbn'] | (own[get_rank()] if len(own) == get_world_size() else {})
        load_cbn_state(model_of(runner), state)

    def _tell_epoch(self, runner) -> None:
        set_cbn_epoch(model_of(runner), _epochs_done(runner))

    @staticmethod
    def _burning_in(runner) -> bool:
        # a layer in eval mode, of a frozen part, counts no training forwards: its burn-in would never end
        return any(layer.burning_in and layer.training for layer in cbn_layers(model_of(runner)).values())


def _epochs_done(runner) -> int:
    loop = runner.train_loop
    if not isinstance(loop, IterBasedTrainLoop):
        return runner.epoch
    loader = loop.dataloader
    batch = loader.batch_size or loader.batch_sampler.batch_size
    return runner.iter * batch * get_world_size() // len(loader.dataset)
