"""Groups of weights with learning rates and weight decays of their own."""

from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from mmdet.layers import BATCH_NORMS, FilterResponseNorm2d
from mmdet.registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(name='DefaultOptimWrapperConstructor')
class OptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's, whose rules for norms hold for this package's too: `norm_decay_mult`, and no `bias_lr_mult`.

    mmengine 0.10.7 knows torch's classes alone, and would let CBN's weights decay where GroupNorm's do not. Can go when
    it can be told of others.
    """

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '',
                   is_dcn_module: int | float | None = None) -> None:
        """Add the weights of a module, and of those inside, to `params`."""
        if isinstance(module, (*BATCH_NORMS, FilterResponseNorm2d)):
            norm, module = module, nn.GroupNorm(1, 1, affine=False)  # a class that mmengine knows, with these weights
            module._parameters, module._modules = norm._parameters, norm._modules
        super().add_params(params, module, prefix, is_dcn_module)
