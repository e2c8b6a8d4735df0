"""Where results are put together."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["empty_on"]


def empty_on(device: torch.device | None, like: Tensor, *shape: int) -> Tensor:
    """An empty tensor of the precision of `like`, to be filled with `copy_(…, non_blocking=True)`.

    Args:
        device: None = that of `like`. The host's memory for what is on a GPU is pinned, so that the copy doesn't wait.
        like: What it will be filled with, or a part of that.
        shape: None given = that of `like`.
    """
    device = device or like.device
    pinned = like.is_cuda and device.type == "cpu"
    return torch.empty(*(shape or like.shape), dtype=like.dtype, device=device, pin_memory=pinned)
