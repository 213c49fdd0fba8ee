"""The state of CBN layers that is not in the state dict: histories and step counts."""

import itertools

import torch
from torch import nn

from .history import History
from .layer import CrossIterBatchNorm2d


def cbn_layers(model: nn.Module) -> dict[str, CrossIterBatchNorm2d]:
    """All CBN layers of ``model`` by their names."""
    return {name: m for name, m in model.named_modules() if isinstance(m, CrossIterBatchNorm2d)}


def set_cbn_epoch(model: nn.Module, epoch: int) -> None:
    """Tell every CBN layer of ``model`` how many epochs are done: ``burnin=8`` ends when this reaches 8."""
    for layer in cbn_layers(model).values():
        layer.epoch = epoch


def cbn_state(model: nn.Module) -> dict[str, dict]:
    """Histories and step counts of all CBN layers as plain numbers and tensors, for a training checkpoint."""
    return {  # 'window' is the history's name in the files of all versions
        name: dict(steps=layer.steps, window=layer.history.state() if layer.history else None)
        for name, layer in cbn_layers(model).items()
    }


def load_cbn_state(model: nn.Module, state: dict[str, dict]) -> None:
    """Put back what ``cbn_state`` returned. A history of another size than the layer's ``buffer_num`` starts empty.

    Raises:
        ValueError: the state is that of other layers.
    """
    layers = cbn_layers(model)
    if layers.keys() != state.keys():
        odd = sorted(layers.keys() ^ state.keys())
        some = ', '.join(odd[:3]) + (f' and {len(odd) - 3} more' if len(odd) > 3 else '')
        raise ValueError(f'CBN state does not fit the model: in one of them only are the layers {some}')
    for name, layer in layers.items():
        layer.steps, saved = state[name]['steps'], state[name]['window']
        fits = saved is not None and saved['dvar'].shape[1] == layer.buffer_num
        device = next(itertools.chain(layer.parameters(), layer.buffers()), torch.empty(0)).device
        layer.history = History.from_state(saved, device) if fits else None
