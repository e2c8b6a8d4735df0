"""Global attention over fewer keys: opt-in, for scenes of so many views that the exact one takes too long."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from geomtx.checks import check_count, check_range
from geomtx.layers.attention import KeySubset
from geomtx.layers.rope import RotaryTable
from geomtx.types import Bool, Float, Int

__all__ = ["GlobalApproximation", "check_approximation", "choose_keys", "choose_views", "strided_patches"]


class GlobalApproximation(NamedTuple):
    """What the global blocks leave out; nothing by default. No weights are trained for it.

    Every token is still a query. Keys and values are the special tokens of all views and, of some views, the patches on
    every `stride`-th row and column. With a fixed number of key views,
    the work of attention grows with the number of views, no longer with its square.

    Attributes:
        num_key_views: How many views give patches as keys: the reference and those whose pooled patch features are
            farthest from one another, the same for all blocks. None, or no fewer than there are: all.
        stride: Rows and columns of patches from one key to the next. The first is at stride // 2, in the middle of its
            cell, or in the middle of a grid that is smaller than that.
        num_local_layers: In so many of the first global blocks a token sees its own view only, as in a frame block.
    """

    num_key_views: int | None = None
    stride: int = 1
    num_local_layers: int = 0


def check_approximation(approximation: GlobalApproximation, num_global: int) -> None:
    """Require numbers that mean something for so many global blocks.

    Raises:
        ValueError: Otherwise.
    """
    if not isinstance(approximation, GlobalApproximation):
        raise ValueError(f"approximation must be a GlobalApproximation, got {approximation!r}")
    if approximation.num_key_views is not None:
        check_count("num_key_views", approximation.num_key_views)
    check_count("stride", approximation.stride)
    check_count("num_local_layers", approximation.num_local_layers, 0)
    check_range("num_local_layers", approximation.num_local_layers, 0, num_global)


def choose_keys(
    x: Float[Tensor, "b s p c"],
    approximation: GlobalApproximation,
    *,
    num_special: int,
    grid_hw: tuple[int, int],
    rope: RotaryTable | None,
    mask: Bool[Tensor, "b s p"] | None,
) -> KeySubset | None:
    """The keys of global blocks, as tokens of S·P: special ones of all views, then patches view by view.

    Args:
        x: (B, S, P, C), the backbone's tokens, special ones first.
        approximation: What to leave out.
        num_special: Special tokens a view.
        grid_hw: Rows and columns of patches.
        rope: Table of one view's P tokens.
        mask: (B, S, P), True = takes part.

    Returns:
        B·M indices and the table of M tokens; None where nothing is left out.
    """
    num_scenes, num_views, num_tokens = x.shape[:3]
    num_key_views = min(approximation.num_key_views or num_views, num_views)
    if num_key_views == num_views and approximation.stride == 1:
        return None
    if num_key_views == num_views:
        views = torch.arange(num_views, device=x.device).expand(num_scenes, -1)
    else:
        of_patches = None if mask is None else mask[:, :, num_special:]
        views = choose_views(x[:, :, num_special:], num_key_views, of_patches)
    special = torch.arange(num_special, device=x.device)
    patches = num_special + strided_patches(grid_hw, approximation.stride, x.device)
    of_all = torch.arange(num_views, device=x.device)[:, None] * num_tokens + special
    of_key_views = views[:, :, None] * num_tokens + patches
    tokens = torch.cat([of_all.flatten().expand(num_scenes, -1), of_key_views.flatten(1)], dim=1)
    if rope is None:
        return KeySubset(tokens)
    # A position is one within a view, so the table is the same for every choice of views.
    return KeySubset(tokens, rope.rows(torch.cat([special.repeat(num_views), patches.repeat(num_key_views)])))


def strided_patches(grid_hw: tuple[int, int], stride: int, device: torch.device) -> Int[Tensor, " p"]:
    """Which patches of a grid, row by row, lie on every `stride`-th row and column; at least one."""
    rows, columns = (torch.arange(min(stride // 2, (size - 1) // 2), size, stride, device=device) for size in grid_hw)
    return (rows[:, None] * grid_hw[1] + columns).flatten()


@torch.no_grad()
def choose_views(
    patches: Float[Tensor, "b s p c"], num_views: int, mask: Bool[Tensor, "b s p"] | None = None
) -> Int[Tensor, "b k"]:
    """Views that differ most, by farthest-point sampling: the first, then always the one farthest from all chosen ones.

    Distances are between directions of the means over the patches. Views without any patch that takes part come last.

    Args:
        patches: (B, S, P, C).
        num_views: K ≤ S.
        mask: (B, S, P), True = takes part.

    Returns:
        (B, K), different ones, in the order of choice.
    """
    features = F.normalize(_pool(patches, mask), dim=-1)
    nearest = torch.full_like(features[..., 0], torch.inf)
    if mask is not None:
        nearest = nearest.masked_fill(~mask.any(dim=-1), -1.0)  # below any squared distance
    chosen = torch.zeros_like(nearest[:, :1], dtype=torch.long)
    order = [chosen]
    for _ in range(num_views - 1):
        # Not as a product of all pairs, whose precision is the caller's: neighbouring frames differ by little.
        here = features.gather(1, chosen[..., None].expand(-1, -1, features.shape[-1]))
        nearest = torch.minimum(nearest, (features - here).square().sum(dim=-1)).scatter(1, chosen, -torch.inf)
        chosen = nearest.argmax(dim=1, keepdim=True)
        order.append(chosen)
    return torch.cat(order, dim=1)


def _pool(patches: Tensor, mask: Tensor | None) -> Tensor:
    """Means over the patches, or sums over those that take part, in float32 or better."""
    dtype = torch.promote_types(patches.dtype, torch.float32)
    if mask is None:
        return patches.mean(dim=2, dtype=dtype)
    # View by view: what it takes in between is as large as the patches.
    views = zip(patches.unbind(1), mask.unbind(1), strict=True)
    return torch.stack([here.to(dtype).masked_fill(~keep[..., None], 0.0).sum(dim=1) for here, keep in views], dim=1)
