"""Views that come to an encoder as tokens, beside those that come as images."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from geomtx.checks import check_shape
from geomtx.layers.attention import key_mask
from geomtx.layers.block import TransformerBlock
from geomtx.layers.rope import RotaryTable
from geomtx.types import Bool, Float

__all__ = ["ExtraViews", "append_views", "attend_apart", "shift_tokens"]


class ExtraViews(NamedTuple):
    """Further views of the scenes, for instance those of which a picture is to be made.

    Attributes:
        patches: (B, T, patches, C), on the same grid as the images' patches. They get the special tokens of views that
            aren't the first, and come after the images' views.
        isolated: In global blocks, no other view sees these: views of images attend to one another, as if there were
            no others, and each extra view to those and to itself. False = all attend to all.
    """

    patches: Float[Tensor, "b t p c"]
    isolated: bool = False


def append_views(patches: Float[Tensor, "b s p c"], extra: ExtraViews) -> Float[Tensor, "b s2 p c"]:
    """(B, S, patches, C) → (B, S + T, patches, C).

    Raises:
        ValueError: If the extra views are none, or of other scenes, another grid or another width.
    """
    check_shape("extra_views.patches", extra.patches, (patches.shape[0], "T", *patches.shape[2:]))
    if extra.patches.shape[1] == 0:
        raise ValueError("extra_views must be at least one view, got 0")
    return torch.cat([patches, extra.patches.to(patches.dtype)], dim=1)


def shift_tokens(
    x: Float[Tensor, "b s p c"], shift: Float[Tensor, "b s2 p2 c"], first: int
) -> Float[Tensor, "b s p c"]:
    """Add to the tokens from `first` on of the first views."""
    missing = (x.shape[1] - shift.shape[1], x.shape[2] - first - shift.shape[2])
    return x + nn.functional.pad(shift.to(x.dtype), (0, 0, first, missing[1], 0, missing[0]))


def attend_apart(
    block: nn.Module,
    x: Float[Tensor, "b s p c"],
    num_apart: int,
    *,
    rope: RotaryTable | None,
    mask: Bool[Tensor, "b s p"] | None,
) -> Float[Tensor, "b s p c"]:
    """A global block in which nothing sees the last `num_apart` views but each of them itself.

    Keys and values of the others are projected once; no attention is computed to be masked.

    Args:
        block: A `TransformerBlock`.
        x: (B, S, P, C).
        num_apart: 1 … S - 1.
        rope: Table of one view's tokens.
        mask: (B, S, P), True = takes part.
    """
    assert isinstance(block, TransformerBlock)
    num_shared = x.shape[1] - num_apart
    shared, apart = x[:, :num_shared].flatten(1, 2), x[:, num_shared:].flatten(0, 1)
    of_shared = None if rope is None else rope.repeat(num_shared)
    keys, values = block.project_keys(shared, rope=of_shared)
    shared_mask = apart_mask = None
    if mask is not None:
        seen = mask[:, :num_shared].flatten(1)
        shared_mask = key_mask(seen)
        own = mask[:, num_shared:].flatten(0, 1)
        apart_mask = key_mask(torch.cat([seen.repeat_interleave(num_apart, dim=0), own], dim=1))
    own_keys, own_values = block.project_keys(apart, rope=rope)
    all_keys = torch.cat([keys.repeat_interleave(num_apart, dim=0), own_keys], dim=1)
    all_values = torch.cat([values.repeat_interleave(num_apart, dim=0), own_values], dim=1)
    shared = block.attend_to(shared, keys, values, rope=of_shared, mask=shared_mask)
    apart = block.attend_to(apart, all_keys, all_values, rope=rope, mask=apart_mask)
    num_scenes = x.shape[0]
    return torch.cat([shared.unflatten(1, (num_shared, -1)), apart.unflatten(0, (num_scenes, num_apart))], dim=1)
