"""What the backbones of other libraries share.

N images; map m of the network has C_m channels and stride s_m, fine to coarse.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from mmdet.config.errors import UserError
from mmdet.layers import BATCH_NORMS, convert_cbn, plan_cbn
from mmdet.models.initialize import BaseModule


class LibraryBackbone(BaseModule):
    """A network that returns several maps, under the name that its class gives in `network_name`.

    Args:
        network: images -> list of maps.
        stages: module of `network` at which each of its maps ends, fine to coarse, also of those not returned.
        out_channels: C_m of the maps returned; `in_channels='auto'` of a neck reads it.
        frozen_stages: what makes the first so many of all maps is neither trained nor updated.
        norm_cfg: ``dict(type='CBN', buffer_num=3, burnin=8)`` turns each BatchNorm behind a convolution into CBN;
            ``dict(type='BN', requires_grad=False)`` fixes the scale and shift of the norms that are there.
        norm_eval: keep all BatchNorm layers in eval mode, so that they use the pretrained statistics.
        init_cfg: see `mmdet.models.initialize`.

    Raises:
        UserError: options that do not go together.
    """

    network_name: str  # mmdetection's, so that the keys of its checkpoints are ours
    fixed_padding = True  # else it follows the image's size, which torch.compile would work out for minutes, in vain

    def __init__(
        self,
        network: nn.Module,
        stages: Sequence[str],
        out_channels: Sequence[int],
        frozen_stages: int = -1,
        norm_cfg: dict | None = None,
        norm_eval: bool = True,
        init_cfg: dict | list[dict] | None = None,
    ):
        super().__init__(init_cfg)
        if not -1 <= frozen_stages <= len(stages):
            raise UserError(
                f'{type(self).__name__}: frozen_stages={frozen_stages} must be -1 to {len(stages)}, the number of maps'
            )
        self.out_channels = list(out_channels)
        self.norm_eval = norm_eval
        _set_norms(network, dict(norm_cfg or dict(type='BN')), type(self).__name__)
        self.add_module(self.network_name, network)
        self.depthwise = any(isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1 for m in network.modules())
        self.frozen_until = stages[frozen_stages - 1] if frozen_stages > 0 else None
        for module in self._frozen():
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)

    @property
    def network(self) -> nn.Module:
        return getattr(self, self.network_name)

    def train(self, mode: bool = True):
        super().train(mode)
        for module in self.network.modules() if mode and self.norm_eval else ():
            if isinstance(module, BATCH_NORMS):
                module.eval()
        frozen = self._frozen()
        for module in frozen:
            if frozen.issuperset(module.modules()):
                module.eval()
        return self

    def _frozen(self) -> set[nn.Module]:
        """All modules up to the end of one, in the order of their registration, which is that of the computation."""
        if self.frozen_until is None:
            return set()
        names, modules = zip(*self.network.named_modules())
        last = max(i for i, name in enumerate(names) if f'{name}.'.startswith(f'{self.frozen_until}.'))
        return set(modules[: last + 1])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images (N, 3, H, W) -> the maps (N, C_m, H / s_m, W / s_m), fine to coarse.

        On a CPU a network with depthwise convolutions infers in float32: in bfloat16 the maps of EfficientNet-Lite0 are
        5 % off, and a fifth of the detections moves (docs/benchmarks.md).
        """
        if self.depthwise and not torch.is_grad_enabled() and x.is_cpu and torch.is_autocast_enabled('cpu'):
            with torch.autocast('cpu', enabled=False):
                return self.maps(x.float())
        return self.maps(x)

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """Those that the network gives, in its own type."""
        return tuple(self.network(x))

    def calls_in_turn(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        """Convolutions, each with the norm that alone gets its output: `mmdet.layers.pack` folds it."""
        plan = plan_cbn(self.network)
        for norm, conv in plan.pairs.items():
            if norm not in plan.shared:
                yield self.network.get_submodule(conv), self.network.get_submodule(norm)

    def own_names(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights of this network among those of the library's whole model, under our names.

        The door of checkpoints asks for it. timm writes 'stages.0.conv' as 'stages_0.conv', or below 'model.'.
        """
        ours = {_flat(key): f'{self.network_name}.{key}' for key in self.network.state_dict()}
        return {ours[_flat(key)]: value for key, value in weights.items() if _flat(key) in ours}


def _flat(key: str) -> str:
    return key.removeprefix('model.').replace('.', '_')


def _set_norms(network: nn.Module, cfg: dict, owner: str) -> None:
    kind, trained = cfg.pop('type', None), cfg.pop('requires_grad', True)
    if kind not in ('BN', 'CBN') or kind == 'BN' and cfg:
        raise UserError(
            f"{owner}: norm_cfg=dict(type={kind!r}, ...): its norms stay as they are, dict(type='BN', "
            "requires_grad=False) at most, or become dict(type='CBN', buffer_num=3, burnin=8)"
        )
    if kind == 'CBN':
        try:
            convert_cbn(network, **cfg)
        except (ValueError, TypeError) as error:
            raise UserError(f'{owner}: norm_cfg of type CBN: {error}') from error
    if not trained:
        for module in network.modules():
            if isinstance(module, BATCH_NORMS):
                for parameter in module.parameters():
                    parameter.requires_grad_(False)
