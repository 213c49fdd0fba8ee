"""Imported where a graph is traced: it takes what traces graphs with it, nearly a second of every start."""

import torch
from torch import Tensor, nn


@torch.compiler.disable
def uncompiled(norm: nn.Module, *args, **options) -> Tensor:
    """Outside of the graph: derivatives by autograd, which cannot be taken while a forward is traced; and ``sync``,
    since a compiled backward drops the reduction of a process that has no position and so no use for its result, and
    the others wait for it."""
    return norm(*args, **options)
