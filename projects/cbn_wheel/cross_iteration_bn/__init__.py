"""Cross-Iteration Batch Normalization (arXiv 2002.05712) for any PyTorch model."""

from .cbn import CrossIterBatchNorm2d, cbn_state, convert_cbn, load_cbn_state, plan_cbn, revert_cbn, set_cbn_epoch

__all__ = [
    'CrossIterBatchNorm2d', 'cbn_state', 'convert_cbn', 'load_cbn_state', 'plan_cbn', 'revert_cbn', 'set_cbn_epoch',
]
