"""Global attention over fewer keys: an opt-in approximation for scenes of many views."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from geomtx.checks import check_count, check_range
from geomtx.inference.shares import Shares
from geomtx.layers.rope import RotaryTable
from geomtx.types import Bool, EmbeddedViews, Float, Int, show_shapes

__all__ = ["GlobalApproximation", "KeySubset", "check_approximation", "choose_keys", "choose_views", "strided_patches"]


class GlobalApproximation(NamedTuple):
    """What global attention leaves out; nothing by default. No weights are trained for it.

    Every token is still a query. Keys and values are the special tokens of all views and, of the key views, the patches
    on every `stride`-th row and column. With a fixed number of key views, the cost of attention grows linearly with the
    number of views instead of quadratically.

    Attributes:
        num_key_views: Number of views whose patches are keys: the reference view and those whose mean patch features
            are farthest from one another, the same for all blocks. None, or no fewer than there are views, for all.
        stride: Step in rows and columns of patches from one key to the next, at least 1. The first key is at
            stride // 2, in the middle of its cell, or in the middle of a grid that is smaller than that.
        num_local_layers: Number of global blocks, from the first, in which a token attends to its own view only, as in
            a frame block.
    """

    num_key_views: int | None = None
    stride: int = 1
    num_local_layers: int = 0

    @property
    def has_fewer_keys(self) -> bool:
        """Whether some tokens may be no keys."""
        return self.num_key_views is not None or self.stride > 1


@show_shapes
class KeySubset(NamedTuple):
    """Which tokens of a sequence are keys, where not all are.

    Attributes:
        tokens: Indices of the M tokens, (B, M).
        rope: Rotary table of the M tokens; None without rotary positions.
        valid: Boolean mask of the tokens that are keys, (B, M); the others fill up rows of scenes with fewer keys. None
            for all.
        shares: Number of keys in every process; None in one process.
    """

    tokens: Int[Tensor, "batch m"]
    rope: RotaryTable | None = None
    valid: Tensor | None = None
    shares: Shares | None = None

    def take(self, x: Float[Tensor, "batch n c"]) -> Float[Tensor, "batch m c"]:
        """Return these tokens of a sequence."""
        return x.gather(1, self.tokens[..., None].expand(-1, -1, x.shape[-1]))

    def rows(self, rows: slice) -> KeySubset:
        """Return some of the M."""
        return KeySubset(self.tokens[:, rows], None if self.rope is None else self.rope.rows(rows))


def check_approximation(approximation: GlobalApproximation, num_global: int) -> None:
    """Require an approximation that fits the number of global blocks.

    Raises:
        ValueError: Otherwise.
    """
    if not isinstance(approximation, GlobalApproximation):
        raise ValueError(f"approximation must be a GlobalApproximation, got {approximation!r}")
    if not num_global and approximation != GlobalApproximation():
        raise ValueError(f"approximation must be None where no block is across views, got {approximation}")
    if approximation.num_key_views is not None:
        check_count("num_key_views", approximation.num_key_views)
    check_count("stride", approximation.stride)
    check_count("num_local_layers", approximation.num_local_layers, 0)
    check_range("num_local_layers", approximation.num_local_layers, 0, num_global)


def choose_keys(
    views: EmbeddedViews,
    approximation: GlobalApproximation,
    rope: RotaryTable | None,
    shares: Shares | None = None,
) -> KeySubset | None:
    """Choose the keys of global blocks among this process's S·P tokens: special tokens of all views, then patches.

    Args:
        views: Embedded views of this process.
        approximation: Keys to leave out.
        rope: Rotary table of the P tokens of a view.
        shares: Division of the views among processes; defaults to one process with all views.

    Returns:
        The keys; None where nothing is left out.
    """
    num_scenes, num_views, num_tokens = views.x.shape[:3]
    num_all = num_views if shares is None else sum(shares.sizes)
    num_key_views = min(approximation.num_key_views or num_all, num_all)
    if num_key_views == num_all and approximation.stride == 1:
        return None
    device = views.x.device
    if num_key_views == num_all:
        chosen, valid, counts = torch.arange(num_views, device=device).expand(num_scenes, -1), None, None
    else:
        chosen = _choose_of_all(views, num_key_views, shares)
        chosen, valid, counts = (chosen, None, None) if shares is None else _own_views(chosen, shares)
    special = torch.arange(views.num_special, device=device)
    patches = views.num_special + strided_patches(views.grid_hw, approximation.stride, device)
    of_all = torch.arange(num_views, device=device)[:, None] * num_tokens + special
    of_key_views = chosen[:, :, None] * num_tokens + patches
    tokens = torch.cat([of_all.flatten().expand(num_scenes, -1), of_key_views.flatten(1)], dim=1)
    if rope is not None:
        # A position is one within a view, so the table is the same for every choice of views.
        rope = rope.rows(torch.cat([special.repeat(num_views), patches.repeat(chosen.shape[1])]))
    if valid is not None:
        valid = torch.cat([valid.new_ones(num_scenes, of_all.numel()), valid.repeat_interleave(len(patches), 1)], dim=1)
    if shares is not None:
        counts = shares.sizes if counts is None else counts
        sizes = [own * len(special) + keys * len(patches) for own, keys in zip(shares.sizes, counts, strict=True)]
        shares = shares._replace(sizes=tuple(sizes))
    return KeySubset(tokens, rope, valid, shares)


def _choose_of_all(views: EmbeddedViews, num_key_views: int, shares: Shares | None) -> Tensor:
    """Return the key views of every scene as indices among the views of all processes, (B, K)."""
    patches = views.x[:, :, views.num_special :]
    mask = None if views.mask is None else views.mask[:, :, views.num_special :]
    if shares is None:
        return choose_views(patches, num_key_views, mask)
    features = shares.gather(_pool(patches, mask), dim=1)
    valid = None if mask is None else shares.gather(mask.any(dim=-1), dim=1)
    return _farthest(features, num_key_views, valid)


def _own_views(chosen: Tensor, shares: Shares) -> tuple[Tensor, Tensor | None, tuple[int, ...]]:
    """Split key views among the processes that hold them.

    Args:
        chosen: Indices among the views of all processes, (B, K).
        shares: Division of the views among processes.

    Returns:
        This process's key views as indices among its own views, (B, k), filled up where a scene has fewer; which of
        them are key views, None for all; and k of every process.
    """
    starts = [sum(shares.sizes[:rank]) for rank in range(len(shares.sizes))]
    here = [(chosen >= start) & (chosen < start + size) for start, size in zip(starts, shares.sizes, strict=True)]
    counts = tuple(torch.stack([each.sum(dim=1).amax() for each in here]).tolist())
    first = here[shares.rank].to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, : counts[shares.rank]]
    own = (chosen.gather(1, first) - shares.start).clamp(0, shares.sizes[shares.rank] - 1)
    return own, here[shares.rank].gather(1, first) if len(chosen) > 1 else None, counts


def strided_patches(grid_hw: tuple[int, int], stride: int, device: torch.device) -> Int[Tensor, " p"]:
    """Return the patches of a grid, row by row, on every `stride`-th row and column; at least one."""
    rows, columns = (torch.arange(min(stride // 2, (size - 1) // 2), size, stride, device=device) for size in grid_hw)
    return (rows[:, None] * grid_hw[1] + columns).flatten()


@torch.no_grad()
def choose_views(
    patches: Float[Tensor, "b s p c"], num_views: int, mask: Bool[Tensor, "b s p"] | None = None
) -> Int[Tensor, "b k"]:
    """Choose views that differ most by farthest-point sampling: the first, then always the farthest from all chosen.

    Distances are between directions of the means over the patches. Views without any valid patch come last.

    Args:
        patches: Patch tokens, (B, S, P, C).
        num_views: Number of views to choose, K ≤ S.
        mask: Boolean mask of the valid patches, (B, S, P); defaults to all.

    Returns:
        Indices of K different views in the order of choice, (B, K).
    """
    return _farthest(_pool(patches, mask), num_views, None if mask is None else mask.any(dim=-1))


def _farthest(features: Tensor, num_views: int, valid: Tensor | None) -> Tensor:
    """Choose views by farthest-point sampling on the directions of their features (B, S, C); invalid ones last."""
    features = F.normalize(features, dim=-1)
    nearest = torch.full_like(features[..., 0], torch.inf)
    if valid is not None:
        nearest = nearest.masked_fill(~valid, -1.0)  # below any squared distance
    chosen = torch.zeros_like(nearest[:, :1], dtype=torch.long)
    order = [chosen]
    for _ in range(num_views - 1):
        # Not as a product of all pairs in the caller's precision: neighbouring frames differ by little.
        here = features.gather(1, chosen[..., None].expand(-1, -1, features.shape[-1]))
        nearest = torch.minimum(nearest, (features - here).square().sum(dim=-1)).scatter(1, chosen, -torch.inf)
        chosen = nearest.argmax(dim=1, keepdim=True)
        order.append(chosen)
    return torch.cat(order, dim=1)


def _pool(patches: Tensor, mask: Tensor | None) -> Tensor:
    """Return the means over the patches, or sums over the valid ones, (B, S, C) in float32 or better."""
    dtype = torch.promote_types(patches.dtype, torch.float32)
    if mask is None:
        return patches.mean(dim=2, dtype=dtype)
    # One view at a time: intermediate results are as large as the patches.
    views = zip(patches.unbind(1), mask.unbind(1), strict=True)
    return torch.stack([here.to(dtype).masked_fill(~keep[..., None], 0.0).sum(dim=1) for here, keep in views], dim=1)
