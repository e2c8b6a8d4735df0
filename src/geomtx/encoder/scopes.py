"""Over what the blocks of an alternating encoder attend."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from geomtx.checks import check_option
from geomtx.layers.attention import key_mask

__all__ = ["Scope", "ask_head_dim", "check_order", "scope_masks"]

Scope = Literal["frame", "global", "cross"]


def check_order(order: tuple[tuple[Scope, ...], ...], num_frame: int, num_global: int) -> None:
    """Require an order that uses up so many blocks.

    Raises:
        ValueError: Otherwise, or for an unknown scope.
    """
    scopes = [scope for layer in order for scope in layer]
    for scope in scopes:
        check_option("scope", scope, ("frame", "global", "cross"))
    used = scopes.count("frame")
    if (used, len(scopes) - used) != (num_frame, num_global):
        raise ValueError(
            f"order must use each block once, {num_frame} frame and {num_global} global ones, "
            f"got {used} and {len(scopes) - used}; without an order they are taken in pairs"
        )


def scope_masks(order: tuple[tuple[Scope, ...], ...], x: Tensor, mask: Tensor | None) -> dict[Scope, Tensor | None]:
    """Attention masks of tokens (B, S, P, C), of which `mask` (B, S, P) says which take part."""
    masks: dict[Scope, Tensor | None] = {"frame": None, "global": None, "cross": None}
    if mask is not None:
        masks["frame"], masks["global"] = key_mask(mask.flatten(0, 1)), key_mask(mask.flatten(1, 2))
    if any("cross" in layer for layer in order):
        view = torch.arange(x.shape[1], device=x.device).repeat_interleave(x.shape[2])
        others = (view[:, None] != view)[None, None]
        allowed = others if masks["global"] is None else others & masks["global"]
        # A view without others to look at looks at everything that takes part.
        fallback = torch.ones_like(others) if masks["global"] is None else masks["global"]
        masks["cross"] = torch.where(allowed.any(dim=-1, keepdim=True), allowed, fallback)
    return masks


def ask_head_dim(blocks: Iterable[nn.Module]) -> int:
    """The head dimension of the first block that has an `attention.head_dim`.

    Raises:
        ValueError: If none has.
    """
    for block in blocks:
        head_dim = getattr(getattr(block, "attention", None), "head_dim", None)
        if isinstance(head_dim, int):
            return head_dim
    raise ValueError("head_dim must be given for blocks without an `attention.head_dim`, got None")
