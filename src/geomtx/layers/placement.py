"""Where results are put together."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["empty_on", "wait_for_copies"]


def empty_on(device: torch.device | None, like: Tensor, *shape: int) -> Tensor:
    """An empty tensor of the precision and order of `like`, to be filled with `copy_(…, non_blocking=True)`.

    Args:
        device: None = that of `like`. The host's memory for what is on a GPU is pinned, so that the copy doesn't wait.
        like: What it will be filled with, or a part of that.
        shape: None given = that of `like`.
    """
    device = device or like.device
    pinned = like.is_cuda and device.type == "cpu"
    out = torch.empty(*(shape or like.shape), dtype=like.dtype, device=device, pin_memory=pinned)
    # Maps stay channels last: in another order a copy can't go straight to the host, and convolutions are slower.
    if like.ndim == 4 and not like.is_contiguous() and like.is_contiguous(memory_format=torch.channels_last):
        rows_first = (out.shape[0], *out.shape[2:], out.shape[1])
        return out.view(rows_first).permute(0, 3, 1, 2)
    return out


def wait_for_copies(tensors: Iterable[Tensor], device: torch.device) -> None:
    """Wait for what `device` copies into pinned tensors: until then, the host would read what was there before."""
    if any(tensor.is_pinned() for tensor in tensors):
        torch.accelerator.current_stream(device).synchronize()
