"""Batch norms of an exported graph, folded into the convolutions before them: in evaluation CBN is BatchNorm, too.

In PyTorch `conv_norm` of mmdet/layers/conv.py folds them at each call, with mmdet/layers/packed.py on CPUs.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from mmdet.layers.conv import FOLDED_NORMS
from mmdet.layers.packed import AfterFolding, PackedConv2d, folded

_CONVS = nn.Conv2d, PackedConv2d


def fold_norms(model: nn.Module, run: Callable[[], Any]) -> int:
    """Fold in place what `run`, a call of the model in evaluation mode, shows to follow a convolution each time.

    Such a norm becomes what it holds, an activation or nothing. What a convolution gives must go to its norm alone, as
    it does in every layer here. torch.export cannot follow batch norms over RoIs, whose number is a symbol, so this
    comes before it.

    Returns:
        how many norms are gone.
    """
    convs: dict[nn.Module, list[nn.Module | None]] = defaultdict(list)  # what follows each of its calls
    norms: dict[nn.Module, list[nn.Module | None]] = defaultdict(list)  # what went before each of its calls
    last: tuple[nn.Module | None, Tensor | None] = None, None

    def note_conv(conv: nn.Module, args: tuple, output: Tensor) -> None:
        nonlocal last
        last = conv, output
        convs[conv].append(None)

    def note_norm(norm: nn.Module, args: tuple) -> None:
        conv, output = last
        before = conv if args and args[0] is output else None
        norms[norm].append(before)
        if before is not None:
            convs[before][-1] = norm

    watches = [module.register_forward_hook(note_conv) for module in model.modules() if type(module) in _CONVS]
    watches += [module.register_forward_pre_hook(note_norm) for module in model.modules() if _is_batch_norm(module)]
    try:
        run()
    finally:
        for watch in watches:
            watch.remove()
    gone = set()
    for norm, before in norms.items():
        conv = before[0]
        if conv is not None and {*before} == {conv} and {*convs[conv]} == {norm}:
            weight, bias = folded(conv.weight, conv.bias, {**norm._parameters, **norm._buffers}, norm.eps)
            conv.weight, conv.bias = (nn.Parameter(x.detach(), requires_grad=False) for x in (weight, bias))
            conv.behind = ()
            gone.add(norm)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child in gone:
                setattr(parent, name, nn.Sequential(*child.children()))
    return len(gone)


def _is_batch_norm(module: nn.Module) -> bool:
    return (
        (type(module) in FOLDED_NORMS or isinstance(module, AfterFolding)) and not module.training
        and module.weight is not None and module.bias is not None and module.running_var is not None
    )  # fmt: skip
