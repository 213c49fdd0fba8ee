"""What a forward pass keeps in memory for its backward pass."""

from collections.abc import Iterable

import torch
from torch import Tensor


def keeping(kept: dict[int, int], own: Iterable[Tensor]) -> torch.autograd.graph.saved_tensors_hooks:
    """A context that notes the bytes of each storage kept in `kept`, by its address, but for those of `own`."""
    known = {tensor.untyped_storage().data_ptr() for tensor in own}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    return torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
