"""Any classifier of torchvision that works in maps; the shape letters are those of library.py."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmdet.config.errors import UserError, suggest
from mmdet.models.backbones.library import LibraryBackbone
from mmdet.registry import MODELS

_STRIDES = (2, 4, 8, 16, 32)
_SIDE = 128  # pixels of the square image that is sent through once, to find the maps


@MODELS.register_module()
class TorchvisionBackbone(LibraryBackbone):
    """A classifier of torchvision, returning the maps of `out_indices`.

    Of each stride it is the last map before the next stride begins, seen from the two upper levels of modules: of
    mobilenet_v3_large ``features.1`` to ``features.6``, ``features.12`` and ``features``. What lies behind is dropped.

    Args:
        model_name: as in ``torchvision.models.list_models(torchvision.models)``, 'mobilenet_v3_large'.
        out_indices: which of its maps, of strides 2, 4, 8, 16 and 32, where it has them; -1 for the coarsest.
        frozen_stages: counts all maps of the model: 2 freezes what makes those of strides 2 and 4.
        norm_cfg, norm_eval, init_cfg: see `LibraryBackbone`. ``init_cfg=dict(type='Pretrained',
            checkpoint='torchvision://mobilenet_v3_large')`` takes torchvision's own file.
        options: those of the model's constructor.

    Raises:
        UserError: no such model, one without such maps (transformers), or options that do not go together.
    """

    network_name = 'net'

    def __init__(
        self,
        model_name: str,
        out_indices: Sequence[int] = (-4, -3, -2, -1),
        frozen_stages: int = -1,
        norm_cfg: dict | None = None,
        norm_eval: bool = True,
        init_cfg: dict | list[dict] | None = None,
        **options,
    ):
        import torchvision  # half a second that other models need not wait for
        from torchvision.models.feature_extraction import create_feature_extractor

        known = torchvision.models.list_models(torchvision.models)
        if model_name not in known:
            raise UserError(f'TorchvisionBackbone: no model {model_name!r}.{suggest(model_name, known)}')
        model = torchvision.models.get_model(model_name, weights=None, **options)
        maps = _maps(model)
        if not maps or not all(-len(maps) <= index < len(maps) for index in out_indices):
            raise UserError(
                f'TorchvisionBackbone: {model_name} has {len(maps)} maps, of strides {list(maps)}; '
                f'out_indices={tuple(out_indices)} are not among them'
            )
        layers, channels = zip(*maps.values())
        indices = sorted(index % len(maps) for index in out_indices)
        network = create_feature_extractor(model, {layers[index]: str(index) for index in indices})
        stages = layers[: indices[-1] + 1]
        super().__init__(
            network, stages, [channels[i] for i in indices], frozen_stages, norm_cfg, norm_eval, init_cfg
        )

    def __deepcopy__(self, memo: dict) -> 'TorchvisionBackbone':
        """A copy in the same mode: torchvision's copies of its networks begin in training mode."""
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        made.__dict__.update(copy.deepcopy(self.__dict__, memo))
        made.net.train(self.net.training)  # it has one graph for each mode
        for ours, copied in zip(self.modules(), made.modules(), strict=True):
            copied.training = ours.training
        return made

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.net(x).values())


def _maps(model: nn.Module) -> dict[int, tuple[str, int]]:
    """Stride -> the module that ends there, and its channels."""
    found = {}

    def note(name: str):
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            if isinstance(output, Tensor) and output.dim() == 4 and output.shape[2] == output.shape[3]:
                found[_SIDE / output.shape[2]] = name, output.shape[1]

        return hook

    hooks = [m.register_forward_hook(note(name)) for name, m in model.named_modules() if name and name.count('.') < 2]
    training = model.training
    try:
        with torch.no_grad():
            device = next(model.parameters()).device
            model.eval()(torch.zeros(1, 3, _SIDE, _SIDE, device=device))
    except (RuntimeError, AssertionError):  # transformers want another size
        return {}
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return {stride: found[stride] for stride in _STRIDES if stride in found}
