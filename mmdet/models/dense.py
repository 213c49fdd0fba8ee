"""What the heads that predict at every position of every level share.

N images, A anchors per position, K values per anchor, M = sum over levels of H_l * W_l * A.
"""

import torch
from torch import Tensor


def flatten_levels(maps: list[Tensor], values: int) -> Tensor:
    """[(N, A * K, H_l, W_l)] -> (N, M, K) with K = `values`, in the order of the anchors."""
    flat = [x.permute(0, 2, 3, 1).reshape(len(x), -1, values) for x in maps]
    return torch.cat(flat, dim=1)
