"""Groups of weights with learning rates and weight decays of their own."""

from collections import Counter

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from torch import nn

from mmdet.config.errors import at_most, say
from mmdet.layers import BATCH_NORMS, FilterResponseNorm2d
from mmdet.registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(name='DefaultOptimWrapperConstructor')
class OptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's, whose rules for norms hold for this package's too: `norm_decay_mult`, and no `bias_lr_mult`.

    mmengine 0.10.7 knows torch's classes alone, and would let CBN's weights decay where GroupNorm's do not; it logs up
    to four lines for each weight, and nothing about a name that fits none. Can go when it does otherwise.
    """

    def __call__(self, model: nn.Module) -> OptimWrapper:
        wrapper = super().__call__(model)
        if self.paramwise_cfg:
            names = ' '.join(name for name, _ in model.named_parameters())
            unused = [key for key in self.paramwise_cfg.get('custom_keys', ()) if key not in names]
            if unused:
                say(f'paramwise_cfg.custom_keys: no weight has {at_most(map(repr, unused))} in its name')
            counts: Counter[str] = Counter()
            for group in wrapper.optimizer.param_groups:
                settings = [f'{key} {group[key]:.6g}' for key in ('lr', 'weight_decay') if key in group]
                counts[' and '.join(settings)] += len(group['params'])
            groups = (f'{count} with {settings}' for settings, count in counts.most_common())
            print_log(f'paramwise_cfg: weights learn {at_most(groups, 8)}', logger='current')
        return wrapper

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '',
                   is_dcn_module: int | float | None = None) -> None:
        """Add the weights of a module, and of those inside, to `params`."""
        if isinstance(module, (*BATCH_NORMS, FilterResponseNorm2d)):
            norm, module = module, nn.GroupNorm(1, 1, affine=False)  # a class that mmengine knows, with these weights
            module._parameters, module._modules = norm._parameters, norm._modules
        super().add_params(params, module, prefix, is_dcn_module)
