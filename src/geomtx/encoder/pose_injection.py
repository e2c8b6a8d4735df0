"""Blocks that tell tokens the relative poses of views (Pi3X; after PRoPE, Li et al. 2025, without intrinsics)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from geomtx.checks import check_divisible
from geomtx.geometry.camera import invert_rigid
from geomtx.layers.backends import AttentionBackend
from geomtx.layers.block import TransformerBlock
from geomtx.layers.precision import float32_island
from geomtx.layers.rope import RotaryTable, apply_rotary, grid_positions, rotary_table
from geomtx.types import Bool, EmbeddedViews, Float, show_shapes

__all__ = ["PoseBlock", "PoseTable", "leave_as_is", "pose_table"]


@show_shapes
class PoseTable(NamedTuple):
    """Pose and place of every token, which queries, keys and values are transformed by.

    The first half of a head's channels, in groups of four, is transformed by the pose of the token's view. The third
    quarter is rotated by the token's column, the fourth by its row.

    Attributes:
        cam_from_world: Pose of the view of each token as a matrix, (B, N, 4, 4).
        world_from_cam: Its inverse, (B, N, 4, 4).
        rope: Rotary table of column and row, (B, N, D/2): it turns queries, keys and values.
        back: Rotary table of the inverse rotation, (B, N, D/2).
        active: Whether a token takes part, (B, N) bool: patches of views with a known pose do.
    """

    cam_from_world: Float[Tensor, "b n 4 4"]
    world_from_cam: Float[Tensor, "b n 4 4"]
    rope: RotaryTable
    back: RotaryTable
    active: Bool[Tensor, "b n"]

    def rows(self, rows: slice) -> PoseTable:
        """Return the table of some tokens."""
        return tree_map_only(Tensor, lambda each: each[:, rows], self)

    def queries(self, q: Float[Tensor, "b n h d"]) -> Float[Tensor, "b n h d"]:
        """Return queries that give, with `keys`, the products of tokens that are brought to one camera."""
        return _transform(q, self.cam_from_world.mT, self.rope).to(q.dtype)

    def keys(self, k: Float[Tensor, "b n h d"]) -> Float[Tensor, "b n h d"]:
        """Return keys or values in the world."""
        return _transform(k, self.world_from_cam, self.rope).to(k.dtype)

    def outputs(self, x: Float[Tensor, "b n h d"]) -> Float[Tensor, "b n h d"]:
        """Return sums of values, which are in the world, in the cameras of the queries."""
        return _transform(x, self.cam_from_world, self.back).to(x.dtype)


@float32_island
def _transform(x: Tensor, matrices: Tensor, rope: RotaryTable) -> Tensor:
    half = x.shape[-1] // 2
    groups = x[..., :half].unflatten(-1, (-1, 4))  # (B, N, heads, groups, 4)
    by_pose = groups.flatten(2, 3) @ matrices.mT
    by_place = apply_rotary(x[..., half:], rope.over_heads())
    return torch.cat([by_pose.view_as(groups).flatten(-2), by_place], dim=-1)


def as_matrices(transform: Float[Tensor, "*batch 3 4"]) -> Float[Tensor, "*batch 4 4"]:
    """Return rigid transforms [R | t], (..., 3, 4), as matrices of homogeneous points, (..., 4, 4)."""
    bottom = torch.arange(4, device=transform.device).eq(3).to(transform.dtype)
    return torch.cat([transform, bottom.expand(*transform.shape[:-2], 1, 4)], dim=-2)


def pose_table(views: EmbeddedViews, head_dim: int, *, base: float = 100.0) -> PoseTable:
    """Return the table of the tokens of views whose poses are known, or some of them.

    Args:
        views: Tokens of the views before the first block, with poses.
        head_dim: Number of channels D of an attention head, a multiple of 8.
        base: Base of the frequencies of columns and rows, see `rotary_table`.

    Raises:
        ValueError: If `head_dim` is no multiple of 8.
    """
    check_divisible("head_dim", head_dim, 8)
    assert views.poses is not None, "asked for only where there are poses"
    assert views.posed is not None, "poses come with a mask"
    dtype = torch.promote_types(views.x.dtype, torch.float32)
    num_scenes, num_views, num_tokens = views.x.shape[:3]
    cam_from_world, world_from_cam = (as_matrices(each.to(dtype)) for each in (views.poses, invert_rigid(views.poses)))
    # Rows and columns are counted from 0 here.
    places = (grid_positions(views.grid_hw, views.num_special, views.x.device) - 1).clamp(min=0).flip(-1)
    turns = [rotary_table(sign * places, head_dim // 2, base=base, dtype=dtype).repeat(num_views) for sign in (-1, 1)]
    rope, back = (tree_map_only(Tensor, lambda each: each.expand(num_scenes, -1, -1), table) for table in turns)
    active = views.posed[..., None].expand(-1, -1, num_tokens)
    active = active & (torch.arange(num_tokens, device=active.device) >= views.num_special)
    if views.mask is not None:
        active = active & views.mask

    def of_tokens(matrices: Tensor) -> Tensor:
        return matrices[:, :, None].expand(-1, -1, num_tokens, -1, -1).flatten(1, 2)

    return PoseTable(of_tokens(cam_from_world), of_tokens(world_from_cam), rope, back, active.flatten(1, 2))


class PoseBlock(TransformerBlock):
    """x + scale · attention(norm(x)) + scale · MLP(norm(x)), both of the same x, with attention between poses.

    The relative pose of two views transforms the values that pass between their tokens. Tokens that take no part stay
    as they are, and no other token attends to them. In place of a rotary table it is given a `PoseTable`.
    """

    def forward(  # type: ignore[override]
        self,
        x: Float[Tensor, "batch n c"],
        *,
        rope: PoseTable,
        mask: Bool[Tensor, "#batch #heads #n #m"] | None = None,
        core: AttentionBackend | None = None,
    ) -> Float[Tensor, "batch n c"]:
        """Transform tokens, (batch, N, C) → (batch, N, C).

        Args:
            x: Tokens, (batch, N, C).
            rope: Poses and places of the N tokens.
            mask: Attention mask, see `Attention`; defaults to all pairs.
            core: Function that computes attention from queries, keys and values; defaults to the block's backend.
        """
        q, k, v = self.attention.project(self.attention_norm(x))
        return self._add(x, rope, q, rope.keys(k), rope.keys(v), mask, core)

    def project_keys(  # type: ignore[override]
        self, x: Float[Tensor, "batch m c"], *, rope: PoseTable
    ) -> tuple[Float[Tensor, "batch m h d"], Float[Tensor, "batch m h d"]]:
        """Return keys and values of tokens, (batch, M, heads, D) each, in the world.

        Args:
            x: Tokens, (batch, M, C).
            rope: Poses and places of the M tokens.
        """
        keys, values = self.attention.project_keys(self.attention_norm(x))
        return rope.keys(keys), rope.keys(values)

    def attend_to(  # type: ignore[override]
        self,
        x: Float[Tensor, "batch n c"],
        keys: Float[Tensor, "batch m h d"],
        values: Float[Tensor, "batch m h d"],
        *,
        rope: PoseTable,
        mask: Bool[Tensor, "#batch #heads #n #m"] | None = None,
    ) -> Float[Tensor, "batch n c"]:
        """Transform tokens that attend to given keys and values, see `TransformerBlock.attend_to`.

        Args:
            x: Tokens, (batch, N, C).
            keys: Keys from `project_keys`, (batch, M, heads, D).
            values: Values from `project_keys`, (batch, M, heads, D).
            rope: Poses and places of the N tokens.
            mask: Attention mask over the M keys, see `Attention`; defaults to all pairs.
        """
        return self._add(x, rope, self.attention.project_queries(self.attention_norm(x)), keys, values, mask)

    def _add(
        self,
        x: Tensor,
        rope: PoseTable,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None,
        core: AttentionBackend | None = None,
    ) -> Tensor:
        core = partial(_attend_between, core or self.attention.backend, rope)
        out = self.attention.attend(rope.queries(q), keys, values, mask=mask, core=core)
        changed = self.mlp_scale(self.attention_scale(x, out), self.mlp(self.mlp_norm(x)))
        return torch.where(rope.active[..., None], changed, x)


def _attend_between(
    core: AttentionBackend, table: PoseTable, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
) -> Tensor:
    """Attend, and bring the results into the cameras of the queries; (B, H, N, D) as backends have it."""
    return table.outputs(core(q, k, v, mask).transpose(1, 2)).transpose(1, 2)


def leave_as_is(number: int, block: Callable[..., Tensor], x: Tensor) -> Tensor:
    """Return tokens as they are: how a block that injects poses is run where none are known."""
    return x
