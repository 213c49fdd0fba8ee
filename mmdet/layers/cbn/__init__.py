"""Cross-Iteration Batch Normalization."""

from .convert import convert_cbn, plan_cbn, revert_cbn
from .layer import CrossIterBatchNorm2d
from .state import cbn_layers, cbn_state, load_cbn_state, set_cbn_epoch

__all__ = [
    'CrossIterBatchNorm2d', 'cbn_layers', 'cbn_state', 'convert_cbn', 'load_cbn_state', 'plan_cbn', 'revert_cbn',
    'set_cbn_epoch',
]
